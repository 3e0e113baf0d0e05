/*
 * What the analyser cannot learn from one file, told to it by `make lint` (-include): err_set() answers the
 * code that it was given. Without that it walks on into functions whose callee has just failed, as if the
 * callee had answered "0 or more".
 */
#ifndef LINT_FACTS_H
#define LINT_FACTS_H

#include "blkd/err.h"

#define err_set(e, code, ...)                                                                                \
	({                                                                                                   \
		int err_code_ = (code);                                                                      \
		(err_set)((e), err_code_, __VA_ARGS__);                                                      \
		err_code_;                                                                                   \
	})

#endif
