# blkd's build: one non-recursive Makefile.
#   make [VARIANT=release|asan|tsan] [CC=gcc|clang] [V=1]     builds into build/$(VARIANT)/, objects below obj/ there
# Sources are found by wildcard: a new .c in a module's directory is part of the build. What is linked where:
#   libblkd.a   every module of the datapath (blkd/*/, formats/, cache/, sr-drivers/)
#   blkd        blkd/main.c                    blkimg  tools/blkimg/*.c      blkctl  control/*.c
#   simxen      sim/simxen/*.c                 simguest sim/simguest/*.c     (no libblkd: they share no code with the datapath)
#   tests/{unit,prop,faults}/test_*.c          one cmocka program each;  tests/crash/*.c  one program, crashtest

VARIANT ?= release
CC      ?= gcc
ifeq ($(origin CC),default)
CC := gcc
endif
B       := build/$(VARIANT)
O       := $(B)/obj
PREFIX  ?= /usr/local
DESTDIR ?=
Q       := $(if $(V),,@)

DEPS := gcc make pkg-config clang clang-format clang-tidy libclang-rt-14-dev cppcheck liburing-dev libaio-dev libjansson-dev uuid-dev \
	libxen-dev libcmocka-dev xenstore-utils fio qemu-utils nbdkit libnbd-bin libnbd-dev python3 python3-libnbd libvhdi-dev libvhdi-utils \
	mmdebstrap fakeroot uidmap e2fsprogs iproute2 procps git

WARN := -Wall -Wextra -Wshadow -Wvla -Wundef -Wstrict-prototypes -Wmissing-prototypes -Wold-style-definition -Wpointer-arith \
	-Wcast-qual -Wcast-align -Wwrite-strings -Wformat=2 -Wimplicit-fallthrough -Wswitch-enum -Wnull-dereference \
	-Wdouble-promotion -Wconversion -Wno-sign-conversion
ifneq (,$(findstring clang,$(CC)))
WARN += -Wthread-safety
else
WARN += -Wlogical-op -Wduplicated-cond -Wduplicated-branches
endif
WERROR ?= -Werror

CPPFLAGS := -D_GNU_SOURCE -D__XEN_INTERFACE_VERSION__=__XEN_LATEST_INTERFACE_VERSION__ -I. -Iinclude -MMD -MP
CFLAGS_release := -O2 -g -fno-omit-frame-pointer -fstack-protector-strong -D_FORTIFY_SOURCE=2
CFLAGS_asan    := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined -DBLKD_DCHECK
CFLAGS_tsan    := -O1 -g -fno-omit-frame-pointer -fsanitize=thread -Wno-tsan
ifneq (,$(findstring clang,$(CC)))
CFLAGS_tsan    := -O1 -g -fno-omit-frame-pointer -fsanitize=thread
endif
# gcc's flow warnings misfire under sanitizer instrumentation.
ifneq ($(VARIANT),release)
WARN += -Wno-null-dereference $(if $(findstring clang,$(CC)),,-Wno-maybe-uninitialized)
endif
CFLAGS  := -std=gnu11 -pthread $(WARN) $(WERROR) $(CFLAGS_$(VARIANT)) $(EXTRA_CFLAGS)
LDFLAGS := -pthread $(filter -fsanitize%,$(CFLAGS_$(VARIANT)))
# liburing is linked statically: the shared 2.3 does not export all that its header declares.
LIBS    := -l:liburing.a -laio -ljansson -luuid -lxenstore

LIB_SRC  := $(sort $(foreach d,blkd/base blkd/io blkd/dev blkd/blkif blkd/hyp blkd/nbd blkd/ctl formats formats/vhd cache sr-drivers,$(wildcard $(d)/*.c)))
LIB_OBJ  := $(LIB_SRC:%.c=$(O)/%.o)
PROG_SRC_blkd     := $(wildcard blkd/main.c)
PROG_SRC_blkimg   := $(sort $(wildcard tools/blkimg/*.c))
PROG_SRC_blkctl   := $(sort $(wildcard control/*.c))
PROG_SRC_simxen   := $(sort $(wildcard sim/simxen/*.c))
PROG_SRC_simguest := $(sort $(wildcard sim/simguest/*.c))
PROGS    := $(foreach p,blkd blkimg blkctl simxen simguest,$(if $(PROG_SRC_$(p)),$(p)))
PROG_OBJ := $(foreach p,$(PROGS),$(PROG_SRC_$(p):%.c=$(O)/%.o))

CTEST_SRC := $(sort $(wildcard tests/unit/test_*.c tests/prop/test_*.c tests/faults/test_*.c))
CTESTS    := $(CTEST_SRC:%.c=$(B)/%)
CRASH_SRC := $(sort $(wildcard tests/crash/*.c))
CRASHTEST := $(if $(CRASH_SRC),$(B)/tests/crash/crashtest)

.PHONY: all tests deps demo check check-asan check-tsan check-aio check-crash fuzz bench lint format install clean
.SECONDARY:
all: $(PROGS:%=$(B)/%) $(B)/libblkd.a
tests: all $(CTESTS) $(CRASHTEST)

$(O)/%.o: %.c
	@mkdir -p $(@D)
	$(if $(V),,@echo "  CC   $<")
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -c -o $@ $<

$(B)/libblkd.a: $(LIB_OBJ)
	$(if $(V),,@echo "  AR   $@")
	$(Q)rm -f $@ && ar rcs $@ $^

$(B)/blkd $(B)/blkimg $(B)/blkctl: $(B)/libblkd.a
define prog_rule
$(B)/$(1): $(PROG_SRC_$(1):%.c=$(O)/%.o)
	$$(if $$(V),,@echo "  LD   $$@")
	$$(Q)$$(CC) $$(LDFLAGS) -o $$@ $$(filter %.o,$$^) $$(filter %.a,$$^) $$(LIBS)
endef
$(foreach p,$(PROGS),$(eval $(call prog_rule,$(p))))

$(CTESTS): $(B)/%: $(O)/%.o $(B)/libblkd.a
	@mkdir -p $(@D)
	$(if $(V),,@echo "  LD   $@")
	$(Q)$(CC) $(LDFLAGS) -o $@ $< $(B)/libblkd.a -lcmocka $(LIBS)

BENCH := $(patsubst %.c,$(B)/%,$(wildcard bench/micro/*.c))
all: $(BENCH)
$(BENCH): $(B)/%: $(O)/%.o $(B)/libblkd.a
	@mkdir -p $(@D)
	$(if $(V),,@echo "  LD   $@")
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LIBS)

$(B)/tests/crash/crashtest: $(CRASH_SRC:%.c=$(O)/%.o) $(B)/libblkd.a
	@mkdir -p $(@D)
	$(if $(V),,@echo "  LD   $@")
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LIBS)

deps:
	@tests/deps $(DEPS)

# deps comes first, alone: what is built after it may need what it installs.
demo: deps
	@$(MAKE) --no-print-directory all
	@tests/demo/run $(B) $(KEEP)

check: deps
	@$(MAKE) --no-print-directory tests
	@tests/run $(B)
check-aio: deps
	@$(MAKE) --no-print-directory tests
	@BLKD_ENGINE=aio tests/run $(B) integ
check-asan check-tsan: check-%: deps
	@$(MAKE) --no-print-directory VARIANT=$* tests
	@tests/run build/$*
check-crash: deps
	@$(MAKE) --no-print-directory tests
	@tests/crash/run-long $(B)
fuzz: deps
	@tests/fuzz/run
lint: deps
	@tests/lint/run
bench: deps
	@$(MAKE) --no-print-directory all
	@bench/run $(B) --out bench/RESULTS.md

format:
	clang-format -i $$(git ls-files '*.c' '*.h')

install: all
	install -d $(DESTDIR)$(PREFIX)/sbin $(DESTDIR)$(PREFIX)/bin
	install -m 755 $(B)/blkd $(DESTDIR)$(PREFIX)/sbin/
	install -m 755 $(B)/blkctl $(B)/blkimg $(B)/simxen $(B)/simguest $(DESTDIR)$(PREFIX)/bin/

clean:
	rm -rf build

-include $(LIB_OBJ:.o=.d) $(PROG_OBJ:.o=.d) $(patsubst $(B)/%,$(O)/%.d,$(BENCH) $(CTESTS)) $(CRASH_SRC:%.c=$(O)/%.d)
