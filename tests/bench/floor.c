/* The floor: a server that reads, counts the empty lines and answers DUNNO to each; floor SOCKET [SOCKET ...].

   What the machine and its kernel cost at least. A SOCKET is a path (unix) or a port on 127.0.0.1. Like the bare
   Twisted protocol beside it, it understands nothing, and does not look after an empty line cut between two packets. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define ANSWER "action=DUNNO\n\n"
#define ANSWER_LENGTH (sizeof ANSWER - 1)
#define EVENTS 512
#define MOST_READ 65536
#define BACKLOG 1024

static int poller;

static void die(const char *why) { perror(why); exit(1); }

static void watch(int fd) {
    struct epoll_event wanted = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &wanted)) die("epoll_ctl");
}

static int listening_unix(const char *path) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof at.sun_path) { fprintf(stderr, "%s: too long\n", path); exit(2); }
    strcpy(at.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof at)) die(path);
    return fd;
}

static int listening_tcp(const char *port) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one)) die(port);
    if (bind(fd, (struct sockaddr *)&at, sizeof at)) die(port);
    return fd;
}

static void take_in(int listening) {
    int one = 1, fd = accept4(listening, NULL, NULL, SOCK_NONBLOCK);
    if (fd < 0) die("accept4");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); /* fails on a unix socket, which has no Nagle */
    watch(fd);
}

static void answer(int fd) {
    static char got[MOST_READ], answers[MOST_READ / 2 * ANSWER_LENGTH];
    ssize_t length = recv(fd, got, sizeof got, 0);
    if (length <= 0) { close(fd); return; }
    char *to = answers;
    for (char *at = got; (at = memmem(at, got + length - at, "\n\n", 2)); at += 2) {
        memcpy(to, ANSWER, ANSWER_LENGTH);
        to += ANSWER_LENGTH;
    }
    if (to > answers && send(fd, answers, to - answers, MSG_NOSIGNAL) != to - answers) close(fd);
}

int main(int argc, char **argv) {
    int last_listening = -1;
    if ((poller = epoll_create1(0)) < 0) die("epoll_create1");
    for (int i = 1; i < argc; i++) {
        last_listening = strchr(argv[i], '/') ? listening_unix(argv[i]) : listening_tcp(argv[i]);
        if (listen(last_listening, BACKLOG)) die("listen");
        watch(last_listening);
    }
    puts("ready");
    if (fflush(stdout)) die("stdout");
    for (;;) {
        struct epoll_event events[EVENTS];
        int found = epoll_wait(poller, events, EVENTS, -1);
        if (found < 0 && errno != EINTR) die("epoll_wait"); /* it may be stopped, and go on */
        for (int i = 0; i < found; i++)
            if (events[i].data.fd <= last_listening) /* opened first, so the smaller ones */
                take_in(events[i].data.fd);
            else
                answer(events[i].data.fd);
    }
}
