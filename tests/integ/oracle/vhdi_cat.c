/*
 * Writes the disk that a chain of VHDs holds, as libvhdi reads it, to a raw file: vhdi_cat OUT LEAF [PARENT
 * ...], nearest parent first. Shares no code with formats/: a second opinion on differencing images, which
 * qemu does not have.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <libvhdi.h>

#define MAX_FILES   64
#define CHUNK_BYTES (1 << 20)

static _Noreturn void die(const char *what, libvhdi_error_t *error)
{
	fprintf(stderr, "vhdi_cat: %s\n", what);
	if (error)
		libvhdi_error_backtrace_fprint(error, stderr);
	exit(1);
}

int main(int argc, char **argv)
{
	libvhdi_file_t *file[MAX_FILES] = {0};
	libvhdi_error_t *error = NULL;
	static unsigned char buf[CHUNK_BYTES];
	int n = argc - 2, out;
	size64_t size = 0;

	if (n < 1 || n > MAX_FILES)
		die("usage: vhdi_cat OUT LEAF [PARENT ...]", NULL);
	for (int i = 0; i < n; i++)
		if (libvhdi_file_initialize(&file[i], &error) != 1 ||
		    libvhdi_file_open(file[i], argv[2 + i], libvhdi_get_access_flags_read(), &error) != 1)
			die(argv[2 + i], error);
	for (int i = n - 2; i >= 0; i--)
		if (libvhdi_file_set_parent_file(file[i], file[i + 1], &error) != 1)
			die("cannot set the parent", error);
	out = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (out < 0 || libvhdi_file_get_media_size(file[0], &size, &error) != 1)
		die("size", error);
	for (size64_t off = 0; off < size;) {
		size_t len = size - off < CHUNK_BYTES ? (size_t)(size - off) : CHUNK_BYTES;
		ssize_t got = libvhdi_file_read_buffer_at_offset(file[0], buf, len, (off64_t)off, &error);

		if (got <= 0 || write(out, buf, (size_t)got) != got)
			die("read", error);
		off += (size64_t)got;
	}
	close(out);
	for (int i = 0; i < n; i++) {
		libvhdi_file_close(file[i], NULL);
		libvhdi_file_free(&file[i], NULL);
	}
	return 0;
}
