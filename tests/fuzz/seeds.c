/* Writes the inputs that the fuzzers start from: one small image of each kind, in the form that fuzz.h
 * describes. Usage: seeds DIR */
#include "blkd/log.h"
#include "tests/lib/vhdmut.h"

#define HEAD_BYTES 8192u

static void save(const char *dir, const char *name, struct mem_file *f, uint64_t cut_bytes)
{
	unsigned char buf[4 + HEAD_BYTES + 512] = {0};
	uint64_t size = mem_size(f) - cut_bytes, gap;
	char path[4096];
	FILE *out;

	gap = size > HEAD_BYTES + 512 ? (size - HEAD_BYTES - 512) / 512 : 0;
	buf[0] = (unsigned char)gap;
	buf[1] = (unsigned char)(gap >> 8);
	mem_peek(f, 0, buf + 4, HEAD_BYTES);
	mem_peek(f, size - 512, buf + 4 + HEAD_BYTES, 512);
	snprintf(path, sizeof(path), "%s/%s", dir, name);
	out = fopen(path, "wb");
	if (!out || fwrite(buf, sizeof(buf), 1, out) != 1 || fclose(out)) {
		perror(path);
		exit(1);
	}
	mem_file_put(f);
}

int main(int argc, char **argv)
{
	struct mem_file *parent;

	if (argc != 2)
		return 2;
	log_set_level(LOG_ERROR);
	parent = mut_make("/f/parent.vhd", VHD_KIND_DYNAMIC, NULL);
	save(argv[1], "differencing", mut_make("/f/image.vhd", VHD_KIND_DIFFERENCING, parent), 0);
	save(argv[1], "fixed", mut_make("/f/image.vhd", VHD_KIND_FIXED, NULL), 0);
	save(argv[1], "unclosed", mut_make("/f/image.vhd", VHD_KIND_DYNAMIC, NULL), 512);
	save(argv[1], "dynamic", parent, 0);
	return 0;
}
