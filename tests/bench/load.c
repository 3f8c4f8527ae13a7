/* The load: smtpd processes that ask about messages, one request after the other; every answer is checked.

   load [-c CONNECTIONS] [-s SECONDS] [-r RATE] [-m MESSAGES] [-a ACCOUNTS] [-n RECIPIENTS] [-d DEPTH] [-t RUN]
        [-i SEED] [-w] SOCKET TEMPLATE

   SOCKET is a path (unix) or a port on 127.0.0.1. TEMPLATE is a file with one request, with the marks \1 (protocol
   state), \2 (account), \3 (recipient), \4 (recipient count), \5 (instance). A message is asked about at RCPT, once for
   each of its RECIPIENTS, and then at DATA, in an instance of its own.

   Without -r each connection asks again as soon as it is answered. With it, that many requests a second are due in all,
   over whichever connection is free, and an answer's time is counted from when its request was due: a stall is seen by
   all who had to wait. Without -m it goes on until SECONDS are over, with accounts in random order; with it, until that
   many messages are sent, one account after the other. RUN goes into the accounts' names: two runs share windows only
   where they should. SEED gives the order of the accounts, and the first instance. DEPTH requests are sent at once
   over each connection, to fill a table quickly; a time is that of the last of their answers.

   It connects, has each connection answered once (but for -m), prints "ready", waits for a line on stdin, asks, prints
   what it found as JSON, and hangs up when stdin ends. Meanwhile it never sleeps: to be woken takes time, the more the
   less there is to do. (With -w, and with -m, it does sleep: the server may be on the same core.) What part of the time
   it had something to do is told as "busy"; "away" is the longest time between two of its looks at its connections, in
   ms: what the generator itself can be wrong by. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define ANSWER "action=DUNNO\n\n"
#define ANSWER_LENGTH (sizeof ANSWER - 1)
#define MOST_TEMPLATE 16384
#define MOST_PIECES 16
#define MOST_RECIPIENTS 100
#define MOST_DEPTH 1000
#define NAME_ROOM 128
#define EVENTS 512
#define SECOND 1000000000ull
#define SLEEP 1000 /* ms at the most, where it may sleep */
#define NAP 1      /* the same at a steady rate */
#define PATIENCE (20 * SECOND) /* after which an answer is taken for never coming */
#define PEAK (SECOND / 100)    /* of each such span, the greatest time is told */
#define MOST_PEAKS 10000

enum { END, STATE, ACCOUNT, RECIPIENT, COUNT, INSTANCE };

struct name { size_t length; char text[NAME_ROOM]; };

struct piece { const char *text; size_t length; int then; }; /* what stands before an account, an instance or the END */

struct client {
    int fd, step;
    size_t asked, got;     /* requests that wait for their answers, and bytes of these that have come */
    uint64_t since;        /* when the oldest of them was sent, or due */
    struct name account, instance;
};

static const char *where, *template_file, *run_name = "run";
static int connections = 1, depth = 1, recipients = 3, sleeps = 0;
static double seconds = 1, rate = 0;
static uint64_t messages = 0, accounts = 1000, seed = 1;

static struct piece steps[MOST_RECIPIENTS + 1][MOST_PIECES];
static char *batch, answers[MOST_DEPTH * ANSWER_LENGTH];
static uint64_t random_state, sent_messages;
static int poller;

static struct client *clients, **idle_clients; /* the latter is a ring */
static int first_idle, n_idle, over;
static uint64_t began, last_answer, idle, away, asked, limit = UINT64_MAX;

static uint64_t *times, n_times, room, answered, greatest, greatest_at, peaks[MOST_PEAKS];

static void die(const char *why) { perror(why); exit(1); }
static void refuse(const char *why) { fprintf(stderr, "load: %s\n", why); exit(2); }

static void *must(void *memory) {
    if (!memory) die("memory");
    return memory;
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

static uint64_t draw(void) { /* xorshift64 */
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    return random_state ^= random_state << 17;
}

/* ---- the requests ---- */

/* Write a request of one step into memory of its own, but for account and instance, and cut it at these. */
static void cut(const char *template, int step) {
    struct piece *piece = steps[step];
    char *to = must(malloc(MOST_TEMPLATE * 2));
    *piece = (struct piece){.text = to};
    for (const char *from = template; *from; from++) {
        switch (*from) {
        case STATE: to += sprintf(to, "%s", step == recipients ? "DATA" : "RCPT"); break;
        case RECIPIENT: if (step < recipients) to += sprintf(to, "recipient%d@remote.example", step); break;
        case COUNT: to += sprintf(to, "%d", step == recipients ? (recipients ? recipients : 1) : 0); break;
        case ACCOUNT: case INSTANCE:
            if (piece == &steps[step][MOST_PIECES - 1]) refuse("too many marks");
            piece->length = to - piece->text;
            piece->then = *from;
            *++piece = (struct piece){.text = to};
            break;
        default: *to++ = *from;
        }
    }
    piece->length = to - piece->text;
}

static void prepare_requests(void) {
    static char template[MOST_TEMPLATE / 2];
    FILE *file = fopen(template_file, "r");
    if (!file || !fread(template, 1, sizeof template - 1, file) || fclose(file)) die(template_file);
    for (int step = 0; step <= recipients; step++) cut(template, step);
    batch = must(malloc((size_t)depth * (MOST_TEMPLATE * 2 + MOST_PIECES * NAME_ROOM)));
    for (int i = 0; i < depth; i++) memcpy(answers + i * ANSWER_LENGTH, ANSWER, ANSWER_LENGTH);
}

static void name_instance(struct name *instance, uint64_t number) { /* as smtpd does: PID.SEC.USEC.SEQ, in hex */
    static const char rest[] = ".6b03cb6b.435bb.0";
    char *to = instance->text;
    int shift = 60;
    while (shift && !(number >> shift)) shift -= 4;
    for (; shift >= 0; shift -= 4) *to++ = "0123456789abcdef"[number >> shift & 15];
    memcpy(to, rest, sizeof rest - 1);
    instance->length = to - instance->text + sizeof rest - 1;
}

static int begin_message(struct client *c) {
    if (messages && sent_messages == messages) return 0;
    uint64_t account = messages ? sent_messages % accounts : draw() % accounts;
    c->account.length = sprintf(c->account.text, "user%llu.%s@example.com", (unsigned long long)account, run_name);
    name_instance(&c->instance, (seed << 40) + ++sent_messages);
    return 1;
}

static char *write_request(struct client *c, char *to) {
    for (const struct piece *piece = steps[c->step];; piece++) {
        memcpy(to, piece->text, piece->length);
        to += piece->length;
        if (piece->then == END) break;
        const struct name *name = piece->then == ACCOUNT ? &c->account : &c->instance;
        memcpy(to, name->text, name->length);
        to += name->length;
    }
    c->step = c->step == recipients ? 0 : c->step + 1;
    return to;
}

/* Send a client's next requests, up to so many; tell whether there were any left. */
static int ask(struct client *c, int most) {
    char *to = batch;
    for (c->asked = 0; c->asked < (size_t)most; c->asked++) {
        if (c->step == 0 && !begin_message(c)) break;
        to = write_request(c, to);
    }
    c->got = 0;
    if (to > batch && send(c->fd, batch, to - batch, MSG_NOSIGNAL) != to - batch) die("send");
    return c->asked > 0;
}

/* Read what has come; tell whether all is answered. */
static int all_answered(struct client *c) {
    char got[MOST_DEPTH * ANSWER_LENGTH + 1];
    size_t wanted = c->asked * ANSWER_LENGTH - c->got;
    ssize_t length = recv(c->fd, got, wanted + 1, 0); /* one byte more, so that too much is noticed */
    if (length <= 0 || (size_t)length > wanted || memcmp(got, answers + c->got, length)) {
        if (length < 0) die("recv");
        fprintf(stderr, "load: answered %zd bytes in place of %zu: %.*s\n", length, wanted, (int)length, got);
        exit(1);
    }
    c->got += length;
    return (size_t)length == wanted;
}

/* ---- the connections ---- */

static int connected_unix(void) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    if (strlen(where) >= sizeof to.sun_path) refuse("the socket's path is too long");
    strcpy(to.sun_path, where);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to)) die("connect");
    return fd;
}

static int connected_tcp(void) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(where))};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to)) die("connect");
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one)) die("TCP_NODELAY");
    return fd;
}

/* Connect, one after the other, so that no server's backlog overflows; who has answered has accepted. */
static void connect_all(void) {
    struct timeval patience = {.tv_sec = PATIENCE / SECOND};
    clients = must(calloc(connections, sizeof *clients));
    idle_clients = must(calloc(connections, sizeof *idle_clients));
    if ((poller = epoll_create1(0)) < 0) die("epoll_create1");
    for (int i = 0; i < connections; i++) {
        struct client *c = idle_clients[i] = &clients[i];
        c->fd = strchr(where, '/') ? connected_unix() : connected_tcp();
        if (setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience)) die("SO_RCVTIMEO");
        if (!messages) for (ask(c, 1); !all_answered(c););
        struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = c};
        if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &wanted)) die("epoll_ctl");
    }
    n_idle = connections;
}

/* ---- asking ---- */

static void note_time(const struct client *c) {
    uint64_t took = last_answer - c->since, peak = (c->since - began) / PEAK;
    if (took > greatest) greatest = took, greatest_at = c->since;
    if (peak < MOST_PEAKS && took > peaks[peak]) peaks[peak] = took;
    if (n_times == room) times = must(realloc(times, (room = room ? room * 2 : 1 << 20) * sizeof *times));
    times[n_times++] = took;
    answered += c->asked;
}

/* Have idle clients ask what is due. */
static void ask_what_is_due(uint64_t t) {
    while (!over && n_idle) {
        uint64_t due = rate ? began + (uint64_t)(asked * (SECOND / rate)) : t;
        if (due > t) return;
        struct client *c = idle_clients[first_idle];
        c->since = due;
        if (!ask(c, depth)) { over = 1; return; }
        first_idle = (first_idle + 1) % connections, n_idle--, asked++;
        over = asked == limit;
    }
}

/* Take in an answer; in a closed loop ask again. */
static void take_in(struct client *c) {
    if (!all_answered(c)) return;
    last_answer = now();
    note_time(c);
    if (!rate && (messages || !over)) { /* a message that has begun is asked about to its end */
        c->since = last_answer;
        if (ask(c, depth)) return;
        over = 1;
    }
    idle_clients[(first_idle + n_idle++) % connections] = c;
}

/* Take in what has come; note for how long there was nothing. */
static void look(void) {
    static uint64_t idle_since;
    struct epoll_event events[EVENTS];
    if (sleeps) idle_since = now();
    int found = epoll_wait(poller, events, EVENTS, sleeps ? (rate ? NAP : SLEEP) : 0);
    if (found < 0) die("epoll_wait");
    if (idle_since && (found || sleeps)) idle += now() - idle_since, idle_since = 0;
    else if (!found && !idle_since) idle_since = now();
    if (!found && n_idle < connections && now() > last_answer + PATIENCE) refuse("no answer for too long");
    for (int i = 0; i < found; i++) take_in(events[i].data.ptr);
}

static void ask_all(void) {
    uint64_t looked, end;
    began = last_answer = looked = now();
    end = began + (uint64_t)(seconds * SECOND);
    if (rate) limit = (uint64_t)(rate * seconds);
    while (n_idle < connections || !over) {
        uint64_t t = now();
        if (t - looked > away) away = t - looked;
        looked = t;
        if (!messages && !rate && t >= end) over = 1;
        ask_what_is_due(t);
        look();
    }
}

/* ---- what is told ---- */

static int by_size(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static double portion(double part) { return n_times ? times[(uint64_t)((n_times - 1) * part)] / 1e6 : 0; }

static void report(void) {
    uint64_t took = last_answer - began, last_peak = took / PEAK;
    qsort(times, n_times, sizeof *times, by_size);
    printf("{\"requests\": %llu, \"seconds\": %.6f, \"busy\": %.4f, \"away\": %.3f, \"began\": %.6f",
           (unsigned long long)answered, took / 1e9, took ? 1 - (double)idle / took : 0, away / 1e6, began / 1e9);
    printf(", \"p50\": %.4f, \"p99\": %.4f, \"p999\": %.4f, \"greatest\": %.4f, \"greatest_at\": %.6f, \"peaks\": [",
           portion(.5), portion(.99), portion(.999), greatest / 1e6, greatest_at / 1e9);
    for (uint64_t i = 0; i <= last_peak && i < MOST_PEAKS; i++) printf("%s%.4f", i ? ", " : "", peaks[i] / 1e6);
    puts("]}");
    if (fflush(stdout)) die("stdout");
}

static void read_options(int argc, char **argv) {
    for (int option; (option = getopt(argc, argv, "c:s:r:m:a:n:d:t:i:w")) != -1;)
        switch (option) {
        case 'c': connections = atoi(optarg); break;
        case 's': seconds = atof(optarg); break;
        case 'r': rate = atof(optarg); break;
        case 'm': messages = strtoull(optarg, NULL, 10); break;
        case 'a': accounts = strtoull(optarg, NULL, 10); break;
        case 'n': recipients = atoi(optarg); break;
        case 'd': depth = atoi(optarg); break;
        case 't': run_name = optarg; break;
        case 'i': seed = strtoull(optarg, NULL, 10); break;
        case 'w': sleeps = 1; break;
        default: exit(2);
        }
    if (argc - optind != 2) refuse("want a socket and a template");
    where = argv[optind], template_file = argv[optind + 1];
    if (connections < 1 || !accounts || seconds < 0 || rate < 0 || strlen(run_name) > NAME_ROOM / 2
        || recipients < 0 || recipients > MOST_RECIPIENTS || depth < 1 || depth > MOST_DEPTH || (rate && depth > 1))
        refuse("an option out of bounds");
    sleeps = sleeps || messages;
    random_state = seed * 0x9e3779b97f4a7c15ull | 1;
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    prepare_requests();
    connect_all();
    puts("ready");
    if (fflush(stdout)) die("stdout");
    if (getchar() == EOF) return 1;
    ask_all();
    report();
    while (getchar() != EOF);
    return 0;
}
