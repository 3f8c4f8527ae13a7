/* What each request has in common but the decision: receiving it, taking it apart, sending its reply.

   `wire`, `prompt` and `server` do the same in Python, and are what is meant; this does it faster for the requests that
   are like the first one of their connection, and leaves all others to them. Where it cannot be compiled, policyd runs
   without it. Nothing here decides, waits, or keeps anything of a request. SOURCE is given by setup.py. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define MOST_RECEIVED (64 * 1024)
#define MOST_REQUEST (16 * 1024) /* what is longer may have a line that is too long; this, and the digits, are `wire`'s */
#define MOST_DIGITS 18
#define MOST_FIELDS 16
#define LETS_IN_AT 8 /* at each eighth reply */

/* A layout is one line after the other, as `wire` packs them: the kind of its value, the length of its name (two bytes, the
   low one first), and its name, with all that the line has before the value. */
#define HEAD 3
enum { ANY = '.', WANTED = '=', NUMBER = '#', NOTHING = '!' };

static PyObject *lines_name, *values_name;

static int is_number(const char *at, Py_ssize_t length) {
    if (length < 1 || length > MOST_DIGITS) return 0;
    for (const char *end = at + length; at < end; at++)
        if (*at < '0' || *at > '9') return 0;
    return 1;
}

/* Return a tuple of the values that a layout wants, or NULL: without an exception where the request is another one. */
static PyObject *take_apart(const char *at, Py_ssize_t size, const unsigned char *layout, Py_ssize_t layout_size) {
    const char *end = at + size, *values[MOST_FIELDS];
    const unsigned char *layout_end = layout + layout_size;
    Py_ssize_t lengths[MOST_FIELDS], found = 0;
    if (size > MOST_REQUEST || memchr(at, '\0', size)) return NULL;
    while (layout < layout_end) {
        if (layout_end - layout < HEAD) return NULL;
        int kind = layout[0];
        Py_ssize_t name = layout[1] | layout[2] << 8;
        layout += HEAD;
        if (layout_end - layout < name || end - at < name || memcmp(at, layout, name)) return NULL;
        layout += name;
        at += name;
        const char *line_end = memchr(at, '\n', end - at);
        if (!line_end) return NULL;
        if (kind == NOTHING && line_end != at) return NULL;
        if (kind == NUMBER && !is_number(at, line_end - at)) return NULL;
        if (kind == WANTED || kind == NUMBER) {
            if (found == MOST_FIELDS) return NULL;
            values[found] = at;
            lengths[found++] = line_end - at;
        }
        at = line_end + 1;
    }
    if (end - at != 1 || *at != '\n') return NULL;
    PyObject *taken = PyTuple_New(found);
    for (Py_ssize_t i = 0; taken && i < found; i++) {
        PyObject *value = PyBytes_FromStringAndSize(values[i], lengths[i]);
        if (!value) Py_CLEAR(taken);
        else PyTuple_SET_ITEM(taken, i, value);
    }
    return taken;
}

PyDoc_STRVAR(fields_doc, "fields(request, layout)\n--\n\n"
"Return the values of a request that has a layout's names in its order, or None where it is another one.");

static PyObject *fields(PyObject *module, PyObject *const *arguments, Py_ssize_t number) {
    char *request, *layout;
    Py_ssize_t size, layout_size;
    if (number != 2) return PyErr_Format(PyExc_TypeError, "fields takes 2 arguments, got %zd", number);
    if (PyBytes_AsStringAndSize(arguments[0], &request, &size) < 0) return NULL;
    if (PyBytes_AsStringAndSize(arguments[1], &layout, &layout_size) < 0) return NULL;
    PyObject *values = take_apart(request, size, (unsigned char *)layout, layout_size);
    if (!values && !PyErr_Occurred()) Py_RETURN_NONE;
    return values;
}

/* Return the exception that is raised, which is so no more; NULL where it is one that is not to be caught. */
static PyObject *caught(void) {
    PyObject *type, *value, *traceback;
    if (!PyErr_ExceptionMatches(PyExc_Exception)) return NULL;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback) PyException_SetTraceback(value, traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return value;
}

static PyObject *decided(PyObject *decide, PyObject *seconds, PyObject *request, PyObject *connection) {
    PyObject *now = PyObject_CallNoArgs(seconds);
    if (!now) return NULL;
    PyObject *arguments[] = {NULL, request, connection, now};
    PyObject *verdict = PyObject_Vectorcall(decide, arguments + 1, 3 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    Py_DECREF(now);
    if (verdict == Py_None) {
        Py_CLEAR(verdict);
        PyErr_SetString(PyExc_TypeError, "None is no verdict");
    }
    return verdict;
}

/* Send a reply; at some of them, other threads are let in: what writes the database needs Python's lock at each row, and
   would get it 200 times a second at the most, so that locks were waited for. To do so each time costs more. */
static ssize_t send_reply(int descriptor, const char *reply, Py_ssize_t size) {
    static unsigned number;
    PyThreadState *state = ++number % LETS_IN_AT ? NULL : PyEval_SaveThread();
    ssize_t sent = send(descriptor, reply, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (state) PyEval_RestoreThread(state);
    return sent;
}

/* The parts of a step: see compiled.py. A change of them, or of what a layout is, wants another SHAPE, here and there. */
enum { TRANSPORT, LAYOUT, DECIDE, SECONDS, REQUEST, CONNECTION, PASSED, REPLY, PARTS };
#define SHAPE 1

/* Do a step, which is that of `key` in `steps`. Return None when all is done, or nothing was there; else what is left to
   be dealt with (see compiled.py). */
static PyObject *do_step(int descriptor, PyObject *key, PyObject *step, PyObject *steps) {
    static char received[MOST_RECEIVED]; /* nothing lets another thread in while it is in use */
    PyObject *const *parts = &PyTuple_GET_ITEM(step, 0);
    char *layout, *reply;
    Py_ssize_t layout_size, reply_size;
    if (PyBytes_AsStringAndSize(parts[LAYOUT], &layout, &layout_size) < 0) return NULL;
    if (PyBytes_AsStringAndSize(parts[REPLY], &reply, &reply_size) < 0) return NULL;

    ssize_t size = recv(descriptor, received, sizeof received, MSG_DONTWAIT);
    if (size < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) Py_RETURN_NONE;
        size = 0; /* whyever it is over */
    }
    PyObject *lines = PyBytes_FromStringAndSize(received, size);
    if (!lines) return NULL;
    PyObject *values = take_apart(PyBytes_AS_STRING(lines), size, (unsigned char *)layout, layout_size);
    if (!values) {
        PyErr_Clear(); /* there is one where memory is short: what came in is not lost for that */
        return lines;
    }
    int failed = PyObject_SetAttr(parts[REQUEST], lines_name, lines) < 0
        || PyObject_SetAttr(parts[REQUEST], values_name, values) < 0;
    Py_DECREF(lines);
    Py_DECREF(values);
    if (failed) return NULL;

    PyObject *verdict = decided(parts[DECIDE], parts[SECONDS], parts[REQUEST], parts[CONNECTION]);
    if (!verdict) return caught();
    if (verdict != parts[PASSED]) return verdict;
    Py_DECREF(verdict);
    ssize_t sent = 0;
    if (PyDict_GetItemWithError(steps, key) == step) /* else the descriptor may be another's by now */
        sent = send_reply(descriptor, reply, reply_size);
    if (sent == reply_size) Py_RETURN_NONE;
    return PyLong_FromSsize_t(sent < 0 ? 0 : sent);
}

/* Do the step of an event. Return the pair of its transport and what is left, None where nothing is; NULL where it has no
   step, or with an exception. */
static PyObject *deal_with(PyObject *event, PyObject *steps) {
    if (!PyTuple_Check(event) || PyTuple_GET_SIZE(event) != 2)
        return PyErr_Format(PyExc_TypeError, "an event is a descriptor and what happened there");
    PyObject *key = PyTuple_GET_ITEM(event, 0);
    long descriptor = PyLong_AsLong(key);
    long happened = PyErr_Occurred() ? 0 : PyLong_AsLong(PyTuple_GET_ITEM(event, 1));
    PyObject *step = happened == EPOLLIN ? PyDict_GetItemWithError(steps, key) : NULL;
    if (!step) return NULL;
    if (!PyTuple_Check(step) || PyTuple_GET_SIZE(step) != PARTS)
        return PyErr_Format(PyExc_TypeError, "a step has %d parts", PARTS);
    Py_INCREF(step); /* whoever decides may have it forgotten */
    PyObject *left = do_step((int)descriptor, key, step, steps), *told = left;
    if (left && left != Py_None) {
        told = PyTuple_Pack(2, PyTuple_GET_ITEM(step, TRANSPORT), left);
        Py_DECREF(left);
    }
    Py_DECREF(step);
    return told;
}

PyDoc_STRVAR(answer_doc, "answer(events, place, steps)\n--\n\n"
"Do the steps of the events from a place on, up to one that has none or leaves something; see compiled.py.");

static PyObject *answer(PyObject *module, PyObject *const *arguments, Py_ssize_t number) {
    if (number != 3 || !PyList_Check(arguments[0]) || !PyDict_Check(arguments[2]))
        return PyErr_Format(PyExc_TypeError, "answer takes a list of events, a place in it and a dict of steps");
    Py_ssize_t place = PyLong_AsSsize_t(arguments[1]);
    if (place < 0) {
        if (PyErr_Occurred()) return NULL;
        return PyErr_Format(PyExc_IndexError, "there is no place before the first event");
    }
    PyObject *events = arguments[0], *left = Py_NewRef(Py_None);
    while (left == Py_None && place < PyList_GET_SIZE(events)) {
        PyObject *event = Py_NewRef(PyList_GET_ITEM(events, place)); /* the list may be changed meanwhile */
        Py_DECREF(left);
        left = deal_with(event, arguments[2]);
        Py_DECREF(event);
        if (left) place++;
    }
    PyObject *both = PyErr_Occurred() ? NULL : Py_BuildValue("nO", place, left ? left : Py_None);
    Py_XDECREF(left);
    return both;
}

static PyMethodDef methods[] = {
    {"fields", (PyCFunction)(void (*)(void))fields, METH_FASTCALL, fields_doc},
    {"answer", (PyCFunction)(void (*)(void))answer, METH_FASTCALL, answer_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT, .m_name = "policyd._onestep", .m_doc = "See compiled.py.", .m_size = -1, .m_methods = methods,
};

PyMODINIT_FUNC PyInit__onestep(void) {
    lines_name = PyUnicode_InternFromString("lines");
    values_name = PyUnicode_InternFromString("values");
    if (!lines_name || !values_name) return NULL;
    PyObject *module = PyModule_Create(&module_definition);
    if (!module) return NULL;
    if (PyModule_AddIntMacro(module, SHAPE) < 0 || PyModule_AddStringMacro(module, SOURCE) < 0) Py_CLEAR(module);
    return module;
}
