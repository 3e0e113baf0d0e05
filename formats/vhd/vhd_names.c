/*
 * Parent locators as the checker and the repairer read them: the same rules as at open (vhd_parent.c), but
 * each locator by itself and with a reason. Text in a file is untrusted; what is not text is refused, never
 * mended, and the result is only ever tried as a path.
 */
#include "formats/vhd/vhd_scan.h"

#include "blkd/err.h"
#include "formats/vhd/utf16.h"

#include <errno.h>
#include <string.h>

static int url_decode(const unsigned char *raw, size_t len, char *out, size_t room)
{
	const char *s = (const char *)raw;

	while (len && !s[len - 1])
		len--;
	if (!utf8_is_name(s, len))
		return -EILSEQ;
	if (len >= 7 && !memcmp(s, "file://", 7)) {
		s += 7;
		len -= 7;
	}
	if (len >= 10 && !memcmp(s, "localhost/", 10)) {
		s += 9;
		len -= 9;
	}
	if (len >= room)
		return -ENAMETOOLONG;
	memcpy(out, s, len);
	out[len] = 0;
	return 0;
}

static int judge(int ret, char *out, struct err *e)
{
	if (ret == -ENAMETOOLONG)
		return err_set(e, -EINVAL, "longer than any path");
	if (ret < 0)
		return err_set(e, -EINVAL, "does not decode to text");
	if (!out[0])
		return err_set(e, -EINVAL, "empty");
	if (out[1] == ':' && strchr(out, '\\'))
		out[0] = 0;
	for (char *p = out; *p; p++)
		if (*p == '\\')
			*p = '/';
	return 0;
}

int vhd_locator_decode(uint32_t code, const unsigned char *raw, uint32_t len_bytes, char *out,
		       size_t out_bytes, struct err *e)
{
	int ret;

	if (!len_bytes)
		return err_set(e, -EINVAL, "empty");
	if (code == VHD_LOC_MACX)
		ret = url_decode(raw, len_bytes, out, out_bytes);
	else if (code == VHD_LOC_W2KU || code == VHD_LOC_W2RU)
		ret = utf16_to_utf8(raw, len_bytes, false, out, out_bytes);
	else
		return err_set(e, -EINVAL, "of an encoding that is not followed");
	return judge(ret, out, e);
}

int vhd_parent_name_decode(const unsigned char raw[VHD_PARENT_NAME_BYTES], char *out, size_t out_bytes,
			   struct err *e)
{
	return judge(utf16_to_utf8(raw, VHD_PARENT_NAME_BYTES, true, out, out_bytes), out, e);
}
