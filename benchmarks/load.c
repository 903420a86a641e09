/* The load generator: many WebSocket clients in one thread, on Linux (epoll).
 *
 * Speaks just enough RFC 6455 to load a server without being the slower of the two: masked text messages made once and
 * sent in batches, answers counted from their headers and never copied. It reads the server's CPU clock itself, exactly
 * when the measured part begins and ends, and prints one JSON object.
 *
 *   load echo     N clients keep W messages in flight each
 *   load fanout   N subscribers and one publisher, the next burst when every reading subscriber has the last one;
 *                 --tenth read|stall makes every tenth subscriber slow to fill, and with stall it never reads;
 *                 with --every N it is every Nth
 *   load connects opens, shakes hands, closes; W at a time
 *   load idle     opens N connections, prints "ready", keeps them until its standard input ends
 *
 * load.py is the same in Python, and takes the same options. Exit code: 0 good, 1 the server misbehaved, 2 bad usage.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CONNECTING, HEAD, SETUP, READY, CLOSED };
enum { CLIENT, PUBLISHER, TENTH };
enum { MAX_STEPS = 4, MAX_PIDS = 16, MAX_CONNECTING = 64, HEAD_MAX = 4096, READ_MAX = 1 << 18, EVENTS = 512 };

static const char KEY[] = "dGhlIHNhbXBsZSBub25jZQ=="; /* RFC 6455, section 1.3, and its answer */
static const char ACCEPT[] = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
static const uint8_t MASK[4] = {0x37, 0xfa, 0x21, 0x3d};
static const char DIGITS[] = "########"; /* in a message: replaced with the next of 10000001, 10000002, ... */

struct step {
    const char *text;
    int frames;
};

struct conn {
    int fd, state, kind, step, awaiting, writing;
    int head_have;            /* of the answer to the handshake, then of the frame header */
    int need;                 /* bytes of the frame header, once two are there */
    int opcode, fin, control; /* of the frame being read; bytes of a control frame's payload so far */
    uint64_t skip;            /* bytes of payload still to come */
    char *head;
    uint8_t header[14], payload[128];
    uint8_t *out;
    size_t out_have, out_done, out_room;
};

static struct {
    const char *mode, *path, *message, *expect, *tenth;
    int port, clients, window, burst, every, pids, steps;
    long messages, warmup;
    double seconds, timeout;
    pid_t pid[MAX_PIDS];
    struct step step[MAX_STEPS]; /* step 0: every connection; the others: not the publisher */
} opt = {.path = "/", .message = "", .window = 1, .burst = 1, .every = 10, .messages = 1000, .seconds = 60, .timeout = 60};

static int epfd, ready, lost;
static long unexpected;
static double give_up;
static struct conn *conns;
static uint8_t buffer[READ_MAX];
static uint8_t *frame;
static size_t frame_len;
static long digits_at = -1; /* where in the frame the counter is */
static unsigned long counter;

static void die(int code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fprintf(stderr, "load: ");
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    va_end(args);
    exit(code);
}

static int64_t clock_ns(clockid_t id) {
    struct timespec t;
    if (clock_gettime(id, &t)) die(1, "the server has ended (its CPU clock is gone)");
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static double now(void) { return clock_ns(CLOCK_MONOTONIC) / 1e9; }

static int64_t server_cpu(void) {
    int64_t sum = 0;
    for (int i = 0; i < opt.pids; i++) {
        clockid_t id;
        if (clock_getcpuclockid(opt.pid[i], &id)) die(1, "the server has ended (no process %d)", opt.pid[i]);
        sum += clock_ns(id);
    }
    return sum;
}

/* Frames out */

static size_t mask_into(uint8_t *to, int opcode, const void *data, size_t len) {
    size_t at = 0;
    to[at++] = 0x80 | opcode;
    if (len < 126) {
        to[at++] = 0x80 | len;
    } else if (len < 65536) {
        to[at++] = 0x80 | 126;
        to[at++] = len >> 8;
        to[at++] = len & 255;
    } else {
        to[at++] = 0x80 | 127;
        for (int i = 7; i >= 0; i--) to[at++] = (uint64_t)len >> (8 * i);
    }
    memcpy(to + at, MASK, 4);
    at += 4;
    for (size_t i = 0; i < len; i++) to[at + i] = ((const uint8_t *)data)[i] ^ MASK[i & 3];
    return at + len;
}

static void watch(struct conn *c, int op, uint32_t events) {
    struct epoll_event e = {.events = events, .data.ptr = c};
    if (epoll_ctl(epfd, op, c->fd, &e)) die(1, "epoll_ctl: %s", strerror(errno));
}

static void drop(struct conn *c) {
    if (c->state == CLOSED) return;
    close(c->fd);
    c->state = CLOSED;
    lost++;
}

static void flush(struct conn *c) {
    while (c->out_done < c->out_have) {
        ssize_t n = send(c->fd, c->out + c->out_done, c->out_have - c->out_done, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) {
            if (!c->writing) watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
            c->writing = 1;
            return;
        }
        if (n < 0) {
            drop(c);
            return;
        }
        c->out_done += n;
    }
    c->out_done = c->out_have = 0;
    if (c->writing) watch(c, EPOLL_CTL_MOD, EPOLLIN);
    c->writing = 0;
}

static uint8_t *room(struct conn *c, size_t len) {
    if (c->out_have + len > c->out_room) {
        c->out_room = (c->out_have + len) * 2;
        if (!(c->out = realloc(c->out, c->out_room))) die(1, "no memory");
    }
    return c->out + c->out_have;
}

static void send_frame(struct conn *c, int opcode, const void *data, size_t len) {
    uint8_t *to = room(c, len + 14);
    c->out_have += mask_into(to, opcode, data, len);
    flush(c);
}

static void send_messages(struct conn *c, long count) {
    uint8_t *to = room(c, count * frame_len);
    for (long i = 0; i < count; i++, to += frame_len) {
        memcpy(to, frame, frame_len);
        if (digits_at >= 0) {
            unsigned long value = 10000000 + ++counter % 90000000;
            size_t payload_at = frame_len - strlen(opt.message);
            for (int d = 7; d >= 0; d--, value /= 10) {
                size_t at = digits_at + d;
                to[at] = ('0' + value % 10) ^ MASK[(at - payload_at) & 3];
            }
        }
    }
    c->out_have += count * frame_len;
    flush(c);
}

/* Frames in */

static void advance(struct conn *c);

static void end_of_frame(struct conn *c, long *count) {
    c->head_have = c->need = 0;
    if (c->opcode == 9) send_frame(c, 10, c->payload, c->control);
    if (c->opcode == 8) drop(c);
    if (c->opcode > 7 || !c->fin) return;
    if (c->state == SETUP) {
        if (c->awaiting > 0 && --c->awaiting == 0) {
            c->step++;
            advance(c);
        }
        return;
    }
    ++*count;
}

/* Returns how many whole data messages ended in these bytes. */
static long take(struct conn *c, const uint8_t *p, size_t len) {
    long count = 0;
    const uint8_t *end = p + len;
    while (p < end && c->state != CLOSED) {
        if (c->need == 0 || c->head_have < c->need) {
            c->header[c->head_have++] = *p++;
            if (c->head_have < 2) continue;
            if (c->need == 0) {
                if (c->header[1] & 0x80) die(1, "the server masked a frame");
                int small = c->header[1] & 127;
                c->need = small == 127 ? 10 : small == 126 ? 4 : 2;
            }
            if (c->head_have < c->need) continue;
            uint64_t size = c->header[1] & 127;
            if (c->need > 2) {
                size = 0;
                for (int i = 2; i < c->need; i++) size = size << 8 | c->header[i];
            }
            c->opcode = c->header[0] & 15;
            c->fin = c->header[0] >> 7;
            c->skip = size;
            c->control = 0;
            if (opt.expect && c->state == READY && c->opcode == 1 && size <= (uint64_t)(end - p) &&
                !memmem(p, size, opt.expect, strlen(opt.expect))) {
                if (!unexpected++) fprintf(stderr, "load: unexpected message: %.*s\n", (int)(size < 300 ? size : 300), p);
            }
            if (c->skip == 0) end_of_frame(c, &count);
            continue;
        }
        size_t n = c->skip < (uint64_t)(end - p) ? c->skip : (size_t)(end - p);
        if (c->opcode > 7) {
            if (c->control + n > 125) die(1, "a control frame above 125 bytes");
            memcpy(c->payload + c->control, p, n);
            c->control += n;
        }
        c->skip -= n;
        p += n;
        if (c->skip == 0) end_of_frame(c, &count);
    }
    return count;
}

/* Returns the data messages of one read. */
static long receive(struct conn *c) {
    ssize_t n = recv(c->fd, buffer, READ_MAX, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    if (n <= 0) {
        drop(c);
        return 0;
    }
    return take(c, buffer, n);
}

/* Connecting: TCP, the handshake, then the steps that make a connection ready */

static void start(struct conn *c) {
    *c = (struct conn){.kind = c->kind, .out = c->out, .out_room = c->out_room};
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) die(1, "socket: %s", strerror(errno));
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (c->kind == TENTH) { /* little room at both ends, so that not reading is felt soon */
        int size = 2048, segment = 536;
        setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
        setsockopt(c->fd, IPPROTO_TCP, TCP_MAXSEG, &segment, sizeof segment);
    }
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(opt.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (connect(c->fd, (struct sockaddr *)&a, sizeof a) && errno != EINPROGRESS) die(1, "connect: %s", strerror(errno));
    c->state = CONNECTING;
    watch(c, EPOLL_CTL_ADD, EPOLLOUT);
}

static void advance(struct conn *c) {
    for (; c->step < opt.steps && !(c->kind == PUBLISHER && c->step > 0); c->step++) {
        struct step *s = &opt.step[c->step];
        c->awaiting = s->frames;
        if (*s->text) send_frame(c, 1, s->text, strlen(s->text));
        if (c->awaiting > 0) return;
    }
    c->state = READY;
    ready++;
}

static void read_head(struct conn *c) {
    if (!c->head && !(c->head = malloc(HEAD_MAX + 1))) die(1, "no memory");
    ssize_t n = recv(c->fd, c->head + c->head_have, HEAD_MAX - c->head_have, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) die(1, "the server closed during a handshake");
    c->head_have += n;
    c->head[c->head_have] = 0;
    char *end = strstr(c->head, "\r\n\r\n");
    if (!end && c->head_have < HEAD_MAX) return;
    if (!end || strncmp(c->head, "HTTP/1.1 101", 12) || !memmem(c->head, end - c->head, ACCEPT, strlen(ACCEPT)))
        die(1, "the handshake was refused: %.80s", c->head);
    char *head = c->head;
    size_t rest = c->head + c->head_have - (end + 4);
    c->head = NULL;
    c->head_have = 0;
    c->state = SETUP;
    advance(c);
    if (rest) take(c, (uint8_t *)end + 4, rest);
    free(head);
}

static void handshake(struct conn *c, uint32_t events) {
    if (c->state == CONNECTING) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) die(1, "connect: %s", strerror(error));
        char request[1024];
        int n = snprintf(request, sizeof request,
                         "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                         "Sec-WebSocket-Key: %s\r\nSec-WebSocket-Version: 13\r\n\r\n",
                         opt.path, opt.port, KEY);
        if (send(c->fd, request, n, MSG_NOSIGNAL) != n) die(1, "could not send the handshake");
        c->state = HEAD;
        watch(c, EPOLL_CTL_MOD, EPOLLIN);
        return;
    }
    if (events & EPOLLOUT) flush(c);
    if (c->state == HEAD)
        read_head(c);
    else if (c->state == SETUP)
        receive(c);
}

static int wait_for(struct epoll_event *events, int ms) {
    int n = epoll_wait(epfd, events, EVENTS, ms);
    if (n < 0 && errno != EINTR) die(1, "epoll_wait: %s", strerror(errno));
    if (now() > give_up) die(1, "gave up after %.0f s: the server does not answer any more", opt.timeout);
    return n < 0 ? 0 : n;
}

static void connect_all(int count) {
    struct epoll_event events[EVENTS];
    int started = 0;
    while (ready < count) {
        while (started < count && started - ready < MAX_CONNECTING) start(&conns[started++]);
        int n = wait_for(events, 1000);
        for (int i = 0; i < n; i++) {
            struct conn *c = events[i].data.ptr;
            if (c->state == READY) {
                if (events[i].events & EPOLLOUT) flush(c);
                receive(c);
            } else if (c->state != CLOSED) {
                handshake(c, events[i].events);
            }
        }
        if (lost) die(1, "the server dropped a connection while the others connected");
    }
}

/* What is measured */

struct result {
    long count;
    int64_t cpu, own, wall;
};

static void begin(struct result *r) {
    r->own = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    r->wall = clock_ns(CLOCK_MONOTONIC);
    r->cpu = server_cpu();
}

static void finish(struct result *r, long count) {
    r->cpu = server_cpu() - r->cpu;
    r->wall = clock_ns(CLOCK_MONOTONIC) - r->wall;
    r->own = clock_ns(CLOCK_PROCESS_CPUTIME_ID) - r->own;
    r->count = count;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void print(struct result *r, double *latency, long latencies) {
    printf("{\"messages\": %ld, \"server_cpu_ns\": %ld, \"own_cpu_ns\": %ld, \"wall_ns\": %ld, \"unexpected\": %ld, \"lost\": %d",
           r->count, (long)r->cpu, (long)r->own, (long)r->wall, unexpected, lost);
    if (latencies) {
        qsort(latency, latencies, sizeof *latency, by_value);
        printf(", \"p50_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f", latency[latencies / 2] * 1e6,
               latency[latencies * 99 / 100] * 1e6, latency[latencies - 1] * 1e6);
    }
    printf("}\n");
    fflush(stdout);
}

static long echo(long total, double seconds) {
    struct epoll_event events[EVENTS];
    long sent = 0, done = 0;
    double stop = now() + seconds;
    for (int i = 0; i < opt.clients && sent < total; i++) {
        long k = total - sent < opt.window ? total - sent : opt.window;
        sent += k;
        send_messages(&conns[i], k);
    }
    while (done < sent) {
        int n = wait_for(events, 1000);
        if (now() > stop) total = sent;
        for (int i = 0; i < n; i++) {
            struct conn *c = events[i].data.ptr;
            if (events[i].events & EPOLLOUT) flush(c);
            long got = receive(c), k = total - sent < got ? total - sent : got;
            done += got;
            if (k > 0) {
                sent += k;
                send_messages(c, k);
            }
        }
        if (lost) die(1, "the server dropped a connection");
    }
    return done;
}

/* Returns the bursts sent. */
static long fanout(long bursts, double seconds, double *latency) {
    struct epoll_event events[EVENTS];
    int stalled = opt.tenth && !strcmp(opt.tenth, "stall");
    long tenths = opt.tenth ? opt.clients / opt.every : 0, fast = opt.clients - tenths, i = 0;
    double stop = now() + seconds;
    for (; i < bursts && now() < stop; i++) {
        long fast_left = fast * opt.burst, tenth_left = stalled ? 0 : tenths * opt.burst;
        double begun = now();
        send_messages(&conns[opt.clients], opt.burst);
        while (fast_left > 0 || tenth_left > 0) {
            int n = wait_for(events, 1000);
            for (int j = 0; j < n; j++) {
                struct conn *c = events[j].data.ptr;
                if (events[j].events & EPOLLOUT) flush(c);
                long got = receive(c);
                if (c->kind == TENTH)
                    tenth_left -= got;
                else if (c->kind == CLIENT && got > 0) {
                    fast_left -= got;
                    if (fast_left == 0 && latency) latency[i] = now() - begun;
                }
            }
            if (lost) die(1, "the server dropped a connection that reads");
        }
    }
    return i;
}

static long connects(long total, double seconds) {
    struct epoll_event events[EVENTS];
    static const uint8_t normal[2] = {1000 >> 8, 1000 & 255};
    long started = 0, done = 0;
    double stop = now() + seconds;
    for (; started < opt.window && started < total; started++) start(&conns[started]);
    while (done < started) {
        int n = wait_for(events, 1000);
        if (now() > stop) total = started;
        for (int i = 0; i < n; i++) {
            struct conn *c = events[i].data.ptr;
            if (c->state == READY) {
                receive(c);
            } else if (c->state != CLOSED) {
                handshake(c, events[i].events);
                if (c->state == READY) send_frame(c, 8, normal, 2);
            }
            if (c->state != CLOSED) continue;
            done++;
            if (started < total) {
                started++;
                start(c);
            }
        }
    }
    lost = 0;
    return done;
}

static void idle(void) {
    struct epoll_event events[EVENTS], input = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_ctl(epfd, EPOLL_CTL_ADD, 0, &input)) die(1, "standard input must be a pipe");
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        int n = wait_for(events, 1000);
        for (int i = 0; i < n; i++) {
            char byte;
            if (!events[i].data.ptr) {
                if (read(0, &byte, 1) <= 0) return;
                continue;
            }
            struct conn *c = events[i].data.ptr;
            if (events[i].events & EPOLLOUT) flush(c);
            receive(c);
        }
        if (lost) die(1, "the server dropped an idle connection");
    }
}

static void parse(int argc, char **argv) {
    if (argc < 2) die(2, "usage: load echo|fanout|connects|idle --port P --pid PID [options]");
    opt.mode = argv[1];
    for (int i = 2; i < argc; i++) {
        const char *name = argv[i];
        if (i + 1 >= argc) die(2, "%s needs a value", name);
        const char *value = argv[++i];
        if (!strcmp(name, "--port")) opt.port = atoi(value);
        else if (!strcmp(name, "--pid") && opt.pids < MAX_PIDS) opt.pid[opt.pids++] = atoi(value);
        else if (!strcmp(name, "--path")) opt.path = value;
        else if (!strcmp(name, "--message")) opt.message = value;
        else if (!strcmp(name, "--expect")) opt.expect = value;
        else if (!strcmp(name, "--tenth")) opt.tenth = value;
        else if (!strcmp(name, "--every")) opt.every = atoi(value);
        else if (!strcmp(name, "--clients")) opt.clients = atoi(value);
        else if (!strcmp(name, "--window")) opt.window = atoi(value);
        else if (!strcmp(name, "--burst")) opt.burst = atoi(value);
        else if (!strcmp(name, "--messages")) opt.messages = atol(value);
        else if (!strcmp(name, "--warmup")) opt.warmup = atol(value);
        else if (!strcmp(name, "--seconds")) opt.seconds = atof(value);
        else if (!strcmp(name, "--timeout")) opt.timeout = atof(value);
        else if (!strcmp(name, "--step") && opt.steps < MAX_STEPS && i + 1 < argc)
            opt.step[opt.steps++] = (struct step){.text = value, .frames = atoi(argv[++i])};
        else die(2, "unknown option %s", name);
    }
    if (!opt.port || !opt.pids) die(2, "--port and --pid are needed");
    if (opt.every < 1) die(2, "--every is at least 1");
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    parse(argc, argv);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    give_up = now() + opt.timeout;
    epfd = epoll_create1(0);
    int fan = !strcmp(opt.mode, "fanout"), churn = !strcmp(opt.mode, "connects");
    int count = churn ? opt.window : opt.clients + fan;
    if (!(conns = calloc(count + 1, sizeof *conns))) die(1, "no memory");
    if (fan) conns[opt.clients].kind = PUBLISHER;
    if (opt.tenth)
        for (int i = opt.every - 1; i < opt.clients; i += opt.every) conns[i].kind = TENTH;
    size_t size = strlen(opt.message);
    if (!(frame = malloc(size + 14))) die(1, "no memory");
    frame_len = mask_into(frame, 1, opt.message, size);
    const char *digits = strstr(opt.message, DIGITS);
    if (digits) digits_at = (long)(frame_len - size) + (digits - opt.message);

    struct result r = {0};
    double *latency = NULL;
    long latencies = 0;
    if (churn) {
        connects(opt.warmup, opt.seconds);
        begin(&r);
        finish(&r, connects(opt.messages, opt.seconds));
    } else {
        connect_all(count);
        if (!strcmp(opt.mode, "idle")) {
            idle();
            return 0;
        }
        if (fan && opt.tenth && !strcmp(opt.tenth, "stall"))
            for (int i = opt.every - 1; i < opt.clients; i += opt.every) watch(&conns[i], EPOLL_CTL_DEL, 0);
        if (fan) {
            if (!(latency = calloc(opt.messages + 1, sizeof *latency))) die(1, "no memory");
            fanout(opt.warmup, opt.seconds, NULL);
            begin(&r);
            latencies = fanout(opt.messages, opt.seconds, latency);
            long reading = opt.tenth && !strcmp(opt.tenth, "stall") ? opt.clients - opt.clients / opt.every : opt.clients;
            finish(&r, latencies * opt.burst * reading);
        } else if (!strcmp(opt.mode, "echo")) {
            echo(opt.warmup, opt.seconds);
            begin(&r);
            finish(&r, echo(opt.messages, opt.seconds));
        } else {
            die(2, "unknown mode %s", opt.mode);
        }
    }
    print(&r, latency, latencies);
    return unexpected ? 1 : 0;
}
