/*
 * The report. Rates are over the phase's whole time, latencies from the request's publication to its response
 * being seen.
 */
#include "sim/simguest/report.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include <jansson.h>

static double us(uint64_t ns)
{
	return (double)ns / 1e3;
}

static double rate(double amount, uint64_t ns)
{
	return ns ? amount * 1e9 / (double)ns : 0;
}

static const struct phase_result *result_of(const struct report *r, unsigned run, unsigned disk)
{
	return &r->results[run * r->g->nvbds + disk];
}

static void table_row(const struct vbd *v, const struct phase_result *p, enum op_kind k)
{
	const struct op_stats *s = &p->kind[k];

	if (s->ops == 0)
		return;
	fprintf(stderr,
		"%-6s %-14.14s %-7s %9" PRIu64 " %9.1f %9.0f %8.1f %8.0f %8.0f %8.0f %9.0f %6" PRIu64 "\n",
		v->name, p->name, op_kind_name(k), s->ops, (double)s->bytes / 1e6,
		rate((double)s->ops, p->elapsed_ns), rate((double)s->bytes / 1e6, p->elapsed_ns),
		us(hist_quantile_ns(&s->latency, 500)), us(hist_quantile_ns(&s->latency, 990)),
		us(hist_quantile_ns(&s->latency, 999)), us(s->latency.max_ns), s->errors);
}

void report_table(const struct report *r)
{
	fprintf(stderr, "%-6s %-14s %-7s %9s %9s %9s %8s %8s %8s %8s %9s %6s\n", "disk", "phase", "op", "ops",
		"MB", "IOPS", "MB/s", "p50 us", "p99 us", "p99.9 us", "max us", "errors");
	for (unsigned run = 0; run < r->nruns; run++) {
		for (unsigned d = 0; d < r->g->nvbds; d++) {
			for (unsigned k = 0; k < OP_KINDS; k++)
				table_row(&r->g->vbd[d], result_of(r, run, d), (enum op_kind)k);
		}
	}
	for (unsigned d = 0; d < r->g->nvbds; d++) {
		const struct tally *t = &r->g->vbd[d].tally;

		fprintf(stderr, "%-6s faults:", r->g->vbd[d].name);
		for (unsigned k = 0; k < FAULTS; k++)
			fprintf(stderr, " %s %" PRIu64, fault_name((enum fault)k), t->count[k]);
		fprintf(stderr, "\n");
	}
}

static json_t *json_u64(uint64_t v)
{
	return json_integer((json_int_t)v);
}

static json_t *json_faults(const uint64_t count[FAULTS])
{
	json_t *o = json_object();

	for (unsigned k = 0; k < FAULTS; k++)
		json_object_set_new(o, fault_name((enum fault)k), json_u64(count[k]));
	return o;
}

static json_t *json_latency(const struct hist *h)
{
	return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "min", us(h->min_ns), "mean",
			 us(hist_mean_ns(h)), "p50", us(hist_quantile_ns(h, 500)), "p90",
			 us(hist_quantile_ns(h, 900)), "p99", us(hist_quantile_ns(h, 990)), "p99.9",
			 us(hist_quantile_ns(h, 999)), "max", us(h->max_ns));
}

static json_t *json_phase(const struct phase_result *p)
{
	json_t *ops = json_object(), *o;

	for (unsigned k = 0; k < OP_KINDS; k++) {
		const struct op_stats *s = &p->kind[k];

		if (s->ops == 0)
			continue;
		json_object_set_new(ops, op_kind_name((enum op_kind)k),
				    json_pack("{s:o, s:o, s:o, s:f, s:f, s:o}", "ops", json_u64(s->ops),
					      "bytes", json_u64(s->bytes), "errors", json_u64(s->errors),
					      "iops", rate((double)s->ops, p->elapsed_ns), "mb_per_s",
					      rate((double)s->bytes / 1e6, p->elapsed_ns), "latency_us",
					      json_latency(&s->latency)));
	}
	o = json_pack("{s:s, s:f, s:f, s:o, s:o, s:o, s:b, s:o}", "name", p->name, "seconds",
		      (double)p->elapsed_ns / 1e9, "cpu_seconds", (double)p->cpu_ns / 1e9, "ring_requests",
		      json_u64(p->ring_requests), "notifies", json_u64(p->notifies), "wakeups",
		      json_u64(p->wakeups), "cut_short", p->cut_short, "ops", ops);
	if (p->no_trim || p->no_flush)
		json_object_set_new(o, "not_offered", json_string(p->no_trim ? "trim" : "flush"));
	return o;
}

static json_t *json_offers(const struct vbd *v)
{
	return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "info", json_u64(v->info),
			 "sector_size", json_u64(v->sector_size), "physical_sector_size",
			 json_u64(v->physical_sector_size), "flush", json_u64(v->flush), "barrier",
			 json_u64(v->barrier), "discard", json_u64(v->discard), "discard_granularity",
			 json_u64(v->discard_granularity), "max_indirect_segments", json_u64(v->max_indirect),
			 "max_queues", json_u64(v->max_queues));
}

static json_t *json_disk(const struct report *r, unsigned d)
{
	const struct vbd *v = &r->g->vbd[d];
	json_t *phases = json_array(), *messages = json_array();

	for (unsigned run = 0; run < r->nruns; run++)
		json_array_append_new(phases, json_phase(result_of(r, run, d)));
	for (unsigned i = 0; i < v->tally.nmessages; i++)
		json_array_append_new(messages, json_string(v->tally.message[i]));
	return json_pack("{s:s, s:o, s:s, s:o, s:i, s:i, s:i, s:i, s:o, s:o, s:o, s:o}", "name", v->name,
			 "devid", json_u64(v->spec->devid), "state", front_state_name(v->state), "sectors",
			 json_u64(v->sectors), "queues", (int)v->last_rings, "ring_order", (int)v->last_order,
			 "connects", (int)v->connects, "resizes", (int)v->resizes, "offers", json_offers(v),
			 "faults", json_faults(v->tally.count), "messages", messages, "phases", phases);
}

static json_t *json_totals(const struct report *r)
{
	uint64_t ops = 0, bytes = 0, flushes = 0;

	for (unsigned i = 0; i < r->nruns * r->g->nvbds; i++) {
		const struct phase_result *p = &r->results[i];

		for (unsigned k = 0; k < OP_KINDS; k++) {
			ops += p->kind[k].ops;
			bytes += p->kind[k].bytes;
		}
		flushes += p->kind[OP_FLUSH].ops + p->kind[OP_BARRIER].ops;
	}
	return json_pack("{s:o, s:o, s:o}", "ops", json_u64(ops), "bytes", json_u64(bytes), "flushes",
			 json_u64(flushes));
}

int report_json(const struct report *r, const char *path)
{
	uint64_t faults[FAULTS] = {0};
	json_t *disks = json_array(), *root;
	struct rusage ru;
	int rc;

	getrusage(RUSAGE_SELF, &ru);
	for (unsigned d = 0; d < r->g->nvbds; d++) {
		json_array_append_new(disks, json_disk(r, d));
		for (unsigned k = 0; k < FAULTS; k++)
			faults[k] += r->g->vbd[d].tally.count[k];
	}
	root = json_pack("{s:o, s:i, s:f, s:o, s:o, s:o}", "domain", json_u64(r->domid), "exit", r->exit_code,
			 "cpu_seconds",
			 (double)(ru.ru_utime.tv_sec + ru.ru_stime.tv_sec) +
			     (double)(ru.ru_utime.tv_usec + ru.ru_stime.tv_usec) / 1e6,
			 "faults", json_faults(faults), "totals", json_totals(r), "disks", disks);
	if (!root)
		return -ENOMEM;
	if (!strcmp(path, "-"))
		rc = json_dumpf(root, stdout, JSON_INDENT(2)) || puts("") < 0;
	else
		rc = json_dump_file(root, path, JSON_INDENT(2));
	json_decref(root);
	return rc ? -EIO : 0;
}
