/* A plan writes nothing; applied up to any write (a power cut there) the image is repaired by the next round;
 * two rounds leave nothing to do. */
#include "blkd/vhd_check.h"
#include "tests/fuzz/fuzz.h"

/* Plans; makes the first n writes. Returns how many the plan has, -1: refused. */
static int round_of(bool drop, unsigned n)
{
	struct repair_opts opts = {.drop_bad_blocks = drop};
	struct repair_plan plan;
	struct err e = ERR_INIT;
	struct backing *b = flat_open(true);
	int ret = vhd_repair_plan(b, &opts, &plan, &e);
	int planned = ret ? -1 : (int)plan.n_writes;

	if (flat.changes || (ret && (!e.text[0] || e.code != ret)))
		abort();
	for (unsigned i = 0; planned > 0 && i < plan.n_writes && i < n; i++)
		if (flat_write(b, plan.writes[i].off_bytes, plan.writes[i].data, plan.writes[i].len_bytes))
			planned = -1; /* larger than the medium of this test */
	flat.changes = 0;
	vhd_repair_free(&plan);
	flat_close(b);
	return planned;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	bool drop;
	int n;

	if (!flat_load(data, size))
		return 0;
	drop = data[3] & 1;
	n = round_of(drop, data[3] >> 1 & 7);
	if (n <= 0)
		return 0;
	n = round_of(drop, UINT32_MAX);
	if (n < 0 && flat.size + 4096 < FLAT_CAP / 2)
		abort(); /* a half-made repair may never make it worse */
	if (n >= 0 && round_of(drop, 0) > 0)
		abort();
	return 0;
}
