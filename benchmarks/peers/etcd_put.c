/* Callers of etcd's Put over gRPC: N calls open at any time, each answered before its next.
 *
 *     etcd_put PORT CONNECTIONS CALLERS VALUE_BYTES BEGIN_NS END_NS SEED FILE
 *
 * One thread, HTTP/2 from nghttp2, the two messages encoded by hand, so that the client costs
 * little beside the server. Keys are the serial numbers, 8 bytes, big-endian; values are random.
 * Calls start at once; after END_NS (CLOCK_MONOTONIC) none is started, and the open ones have
 * DRAIN_NS to be answered. FILE gets one record for each acknowledged call: key (8), started and
 * answered in ns (8 each, little-endian), value. Prints "acknowledged failed open".
 *
 * Memory: calls and connections are allocated once in main and live until the process ends. */

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define KEY_BYTES 8
#define VALUE_BYTES_MAX 16000
#define MESSAGE_BYTES_MAX (VALUE_BYTES_MAX + 64)
#define CONNECTIONS_MAX 1000
#define WINDOW_BYTES (1 << 30)
#define DRAIN_NS 10000000000ull

typedef struct {
    uint64_t key, started_ns;
    size_t size, sent, value_at;
    int answered; /* grpc-status 0 seen */
    uint8_t message[MESSAGE_BYTES_MAX];
} Call;

typedef struct {
    int fd;
    nghttp2_session *session;
} Connection;

static uint64_t random_state, next_key = 1, end_ns, acknowledged, failed;
static int64_t open_calls;
static size_t value_bytes;
static FILE *out;
static char authority[32];

static void die(const char *what) {
    fprintf(stderr, "etcd_put: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000ull + (uint64_t)at.tv_nsec;
}

static uint64_t random_word(void) { /* splitmix64 */
    uint64_t word = (random_state += 0x9e3779b97f4a7c15ull);
    word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9ull;
    word = (word ^ (word >> 27)) * 0x94d049bb133111ebull;
    return word ^ (word >> 31);
}

static size_t put_varint(uint8_t *at, size_t value) {
    size_t size = 0;
    for (; value >= 128; value >>= 7) at[size++] = (uint8_t)(value | 128);
    at[size++] = (uint8_t)value;
    return size;
}

/* PutRequest: field 1 key, field 2 value; before it a byte "not compressed" and the length. */
static void encode(Call *call) {
    uint8_t *at = call->message + 5;
    *at++ = 0x0a;
    *at++ = KEY_BYTES;
    for (int i = 0; i < KEY_BYTES; i++) *at++ = (uint8_t)(call->key >> (8 * (KEY_BYTES - 1 - i)));
    *at++ = 0x12;
    at += put_varint(at, value_bytes);
    call->value_at = (size_t)(at - call->message);
    for (size_t i = 0; i < value_bytes; i += 8) {
        uint64_t word = random_word();
        memcpy(at + i, &word, 8); /* MESSAGE_BYTES_MAX leaves room for the last one */
    }
    call->size = call->value_at + value_bytes;
    uint32_t length = htonl((uint32_t)(call->size - 5));
    call->message[0] = 0;
    memcpy(call->message + 1, &length, 4);
    call->sent = 0;
}

static ssize_t read_body(nghttp2_session *session, int32_t stream, uint8_t *buffer, size_t room,
                         uint32_t *flags, nghttp2_data_source *source, void *user) {
    (void)session, (void)stream, (void)user;
    Call *call = source->ptr;
    size_t count = call->size - call->sent;
    if (count > room) count = room;
    memcpy(buffer, call->message + call->sent, count);
    call->sent += count;
    if (call->sent == call->size) *flags |= NGHTTP2_DATA_FLAG_EOF;
    return (ssize_t)count;
}

#define FIELD(name, value, length)                                                  \
    {(uint8_t *)(name), (uint8_t *)(value), sizeof(name) - 1, (length), NGHTTP2_NV_FLAG_NONE}
#define TEXT(name, value) FIELD(name, value, sizeof(value) - 1)

static void start(nghttp2_session *session, Call *call) {
    nghttp2_nv fields[] = {
        TEXT(":method", "POST"),
        TEXT(":scheme", "http"),
        TEXT(":path", "/etcdserverpb.KV/Put"),
        FIELD(":authority", authority, strlen(authority)),
        TEXT("content-type", "application/grpc"),
        TEXT("te", "trailers"),
    };
    nghttp2_data_provider body = {.source = {.ptr = call}, .read_callback = read_body};
    call->key = next_key++;
    call->answered = 0;
    encode(call);
    call->started_ns = now_ns();
    if (nghttp2_submit_request(session, NULL, fields, sizeof fields / sizeof *fields, &body,
                               call) < 0)
        die("submit");
    open_calls++;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                     size_t name_size, const uint8_t *value, size_t value_size, uint8_t flags,
                     void *user) {
    (void)flags, (void)user;
    Call *call = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    if (call && name_size == 11 && !memcmp(name, "grpc-status", 11))
        call->answered = value_size == 1 && *value == '0';
    return 0;
}

static int on_close(nghttp2_session *session, int32_t stream, uint32_t error, void *user) {
    (void)user;
    Call *call = nghttp2_session_get_stream_user_data(session, stream);
    uint64_t at = now_ns();
    open_calls--;
    if (call->answered && error == 0) {
        uint64_t times[2] = {call->started_ns, at};
        acknowledged++;
        fwrite(call->message + 7, KEY_BYTES, 1, out);
        fwrite(times, sizeof times, 1, out);
        fwrite(call->message + call->value_at, value_bytes, 1, out);
    } else {
        failed++;
    }
    if (at < end_ns) start(session, call);
    return 0;
}

static void dial(Connection *connection, int port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int on = 1;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connection->fd < 0 || connect(connection->fd, (struct sockaddr *)&to, sizeof to))
        die("connect");
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    fcntl(connection->fd, F_SETFL, O_NONBLOCK);
    nghttp2_session_callbacks *callbacks;
    nghttp2_session_callbacks_new(&callbacks);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_close);
    nghttp2_session_client_new(&connection->session, callbacks, NULL);
    nghttp2_session_callbacks_del(callbacks);
    nghttp2_settings_entry window = {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, WINDOW_BYTES};
    nghttp2_submit_settings(connection->session, NGHTTP2_FLAG_NONE, &window, 1);
    nghttp2_session_set_local_window_size(connection->session, NGHTTP2_FLAG_NONE, 0, WINDOW_BYTES);
}

/* Everything the session has to say, in writes of up to a buffer. */
static void flush(Connection *connection) {
    static uint8_t buffer[1 << 18];
    const uint8_t *data;
    size_t held = 0;
    ssize_t size = 1;
    while (size > 0) {
        size = nghttp2_session_mem_send(connection->session, &data);
        if (size < 0) die("nghttp2 send");
        if (held + (size_t)size > sizeof buffer || (size == 0 && held)) {
            for (size_t sent = 0; sent < held;) {
                ssize_t count = write(connection->fd, buffer + sent, held - sent);
                struct pollfd writable = {connection->fd, POLLOUT, 0};
                if (count > 0) sent += (size_t)count;
                else if (errno == EAGAIN) poll(&writable, 1, 1000);
                else die("write");
            }
            held = 0;
        }
        memcpy(buffer + held, data, (size_t)size);
        held += (size_t)size;
    }
}

static void receive(Connection *connection) {
    static uint8_t buffer[1 << 18];
    ssize_t size = read(connection->fd, buffer, sizeof buffer);
    if (size == 0) errno = ECONNRESET;
    if (size == 0 || (size < 0 && errno != EAGAIN)) die("read");
    if (size > 0 && nghttp2_session_mem_recv(connection->session, buffer, (size_t)size) < 0)
        die("nghttp2 receive");
}

int main(int count, char **words) {
    static Connection connections[CONNECTIONS_MAX];
    static struct pollfd waiting[CONNECTIONS_MAX];
    if (count != 9) return 2;
    int port = atoi(words[1]), width = atoi(words[2]), callers = atoi(words[3]);
    value_bytes = (size_t)atol(words[4]);
    end_ns = strtoull(words[6], NULL, 10); /* BEGIN_NS (5) is for whoever reads FILE */
    random_state = strtoull(words[7], NULL, 10);
    if (width < 1 || width > CONNECTIONS_MAX || callers < width || value_bytes > VALUE_BYTES_MAX)
        return 2;
    snprintf(authority, sizeof authority, "127.0.0.1:%d", port);
    out = fopen(words[8], "wb");
    Call *calls = calloc((size_t)callers, sizeof *calls);
    if (!out || !calls) die(words[8]);
    for (int i = 0; i < width; i++) {
        dial(&connections[i], port);
        waiting[i] = (struct pollfd){connections[i].fd, POLLIN, 0};
    }
    for (int i = 0; i < callers; i++) start(connections[i % width].session, &calls[i]);
    for (int i = 0; i < width; i++) flush(&connections[i]);
    while (open_calls > 0 && now_ns() < end_ns + DRAIN_NS) {
        if (poll(waiting, (nfds_t)width, 1000) < 0) die("poll");
        for (int i = 0; i < width; i++)
            if (waiting[i].revents) {
                receive(&connections[i]);
                flush(&connections[i]);
            }
    }
    if (fclose(out)) die("close");
    printf("%llu %llu %lld\n", (unsigned long long)acknowledged, (unsigned long long)failed,
           (long long)open_calls);
    return 0;
}
