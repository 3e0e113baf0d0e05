/*
 * Parent locators and the parent's name as text (vhd_names.h). MacX is a URL of the scheme file, not
 * escaped in practice; W2ku and W2ru are UTF-16LE. Windows' backslashes become slashes, and a path with a
 * drive letter means nothing here.
 */
#include "formats/vhd/vhd_names.h"

#include "blkd/err.h"
#include "formats/vhd/utf16.h"

#include <errno.h>
#include <string.h>

static int url_text(const unsigned char *raw, size_t len, char *out, size_t room)
{
	const char *s = (const char *)raw;

	while (len && !s[len - 1])
		len--;
	if (!utf8_is_name(s, len))
		return -EILSEQ;
	if (len >= 7 && !memcmp(s, "file://", 7)) {
		s += 7;
		len -= 7;
		if (len >= 10 && !memcmp(s, "localhost/", 10)) {
			s += 9;
			len -= 9;
		}
	}
	if (len >= room)
		return -ENAMETOOLONG;
	memcpy(out, s, len);
	out[len] = 0;
	return 0;
}

static void windows_path(char *s)
{
	if (!strchr(s, '\\'))
		return;
	if (s[0] && s[1] == ':') {
		s[0] = 0;
		return;
	}
	for (; *s; s++)
		if (*s == '\\')
			*s = '/';
}

static int locator_raw(uint32_t code, const unsigned char *raw, uint32_t len_bytes, char *out, size_t room)
{
	return code == VHD_LOC_MACX ? url_text(raw, len_bytes, out, room)
				    : utf16_to_utf8(raw, len_bytes, false, out, room);
}

int vhd_locator_text(uint32_t code, const unsigned char *raw, uint32_t len_bytes, char *out,
		     size_t room_bytes)
{
	int ret = locator_raw(code, raw, len_bytes, out, room_bytes);

	if (ret < 0)
		return ret;
	windows_path(out);
	return 0;
}

int vhd_name_text(const unsigned char raw[VHD_PARENT_NAME_BYTES], char *out, size_t room_bytes)
{
	int ret = utf16_to_utf8(raw, VHD_PARENT_NAME_BYTES, true, out, room_bytes);

	if (ret < 0)
		return ret;
	windows_path(out);
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
	windows_path(out);
	return 0;
}

int vhd_locator_decode(uint32_t code, const unsigned char *raw, uint32_t len_bytes, char *out,
		       size_t room_bytes, struct err *e)
{
	if (!len_bytes)
		return err_set(e, -EINVAL, "empty");
	if (code != VHD_LOC_MACX && code != VHD_LOC_W2KU && code != VHD_LOC_W2RU)
		return err_set(e, -EINVAL, "of an encoding that is not followed");
	return judge(locator_raw(code, raw, len_bytes, out, room_bytes), out, e);
}

int vhd_parent_name_decode(const unsigned char raw[VHD_PARENT_NAME_BYTES], char *out, size_t room_bytes,
			   struct err *e)
{
	return judge(utf16_to_utf8(raw, VHD_PARENT_NAME_BYTES, true, out, room_bytes), out, e);
}
