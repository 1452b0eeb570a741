// A management library that knows nothing: each call is a question to the test that built it, over
// the socket whose path is compiled in. Request: op, index, 32 bytes. Answer: NVML's return code,
// a length, and the length that the caller is told, each a u32 in the machine's order, then the bytes.
// Layouts and numbers: nvml.h of NVIDIA's driver 580.
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

typedef struct { unsigned version, environment, cc_feature, dev_tools, multi_gpu; } settings_t;
typedef struct { unsigned chain_len, attestation_len;
                 unsigned char chain[4096], attestation[5120]; } certificate_t;
typedef struct { unsigned has_cec, report_len, cec_len;
                 unsigned char nonce[32], report[8192], cec[4096]; } report_t;
typedef struct { char legacy[16]; unsigned domain, bus, device, device_id, subsystem_id;
                 char bus_id[32]; } pci_t;

static int take(int fd, void *to, size_t len) {
    for (size_t at = 0; at < len;) {
        ssize_t got = read(fd, (char *)to + at, len - at);
        if (got <= 0) return 0;
        at += (size_t)got;
    }
    return 1;
}

static int ask(uint8_t op, uint8_t index, const void *detail, void *to, size_t room, unsigned *len) {
    struct sockaddr_un at = { .sun_family = AF_UNIX, .sun_path = SOCKET };
    unsigned char question[34] = { op, index };
    if (detail) memcpy(question + 2, detail, 32);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    uint32_t answer[3] = { 999, 0, 0 };
    if (fd < 0) return 999;
    if (connect(fd, (struct sockaddr *)&at, sizeof at) == 0 &&
        write(fd, question, sizeof question) == (ssize_t)sizeof question &&
        take(fd, answer, sizeof answer) && answer[1] <= room && take(fd, to, answer[1])) {
        if (len) *len = answer[2];
    } else {
        answer[0] = 999;
    }
    close(fd);
    return (int)answer[0];
}

// Handles are indices plus one: the first one must not be null.
static uint8_t index_of(void *device) { return (uint8_t)((uintptr_t)device - 1); }

int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { (void)code; return "an error of the fake"; }
int nvmlSystemGetDriverVersion(char *out, unsigned len) {
    strncpy(out, "580.95.05", len);
    return 0;
}
int nvmlDeviceGetCount_v2(unsigned *count) { return ask(1, 0, NULL, count, 4, NULL); }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(uintptr_t)(index + 1);
    return 0;
}
int nvmlSystemGetConfComputeSettings(settings_t *out) {
    unsigned version = out->version;
    if (version != (sizeof *out | 1u << 24)) return 25;
    int code = ask(2, 0, NULL, out, sizeof *out, NULL);
    out->version = version;
    return code;
}
int nvmlDeviceGetPciInfo_v3(void *device, pci_t *out) {
    memset(out, 0, sizeof *out);
    return ask(3, index_of(device), NULL, &out->bus, 4, NULL);
}
int nvmlDeviceGetConfComputeGpuAttestationReport(void *device, report_t *out) {
    return ask(4, index_of(device), out->nonce, out->report, sizeof out->report, &out->report_len);
}
int nvmlDeviceGetConfComputeGpuCertificate(void *device, certificate_t *out) {
    return ask(5, index_of(device), NULL, out->attestation, sizeof out->attestation,
               &out->attestation_len);
}
int nvmlSystemSetConfComputeGpusReadyState(unsigned ready) {
    return ask(6, (uint8_t)ready, NULL, NULL, 0, NULL);
}
int nvmlSystemGetConfComputeGpusReadyState(unsigned *ready) {
    return ask(7, 0, NULL, ready, 4, NULL);
}
