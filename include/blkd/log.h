/*
 * Log lines and checks. One sink (stderr, or what log_to() says), one line a call, prefixed with level and,
 * where given, the device. Never called on the hot path: that counts. Each site is rate-limited (10 lines a
 * second), and what was dropped is told.
 */
#ifndef BLKD_LOG_H
#define BLKD_LOG_H

#include <stdint.h>

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

struct log_site { /* static, one per call site */
	uint64_t window_ns;
	unsigned count, dropped;
};

void log_set_level(enum log_level max);
void log_line(struct log_site *, enum log_level, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
_Noreturn void check_failed(const char *expr, const char *file, int line);

#define log_at(level, ...)                                                                                   \
	do {                                                                                                 \
		static struct log_site site_;                                                                \
		log_line(&site_, level, __VA_ARGS__);                                                        \
	} while (0)
#define log_error(...) log_at(LOG_ERROR, __VA_ARGS__)
#define log_warn(...)  log_at(LOG_WARN, __VA_ARGS__)
#define log_info(...)  log_at(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_at(LOG_DEBUG, __VA_ARGS__)

/* CHECK stays on in every build: it stands where going on could write wrong bytes. DCHECK is for costly
 * invariants, in sanitizer builds. Neither ever judges what a guest, a disk, a config or the kernel says. */
#define CHECK(x) ((x) ? (void)0 : check_failed(#x, __FILE__, __LINE__))
#ifdef BLKD_DCHECK
#define DCHECK(x) CHECK(x)
#else
#define DCHECK(x) ((void)0)
#endif

#endif
