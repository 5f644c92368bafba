package volant

import (
	"encoding/base64"
	"path"
	"strings"
)

const (
	maxFilePath   = 4095
	maxFileBase64 = 700 << 10 // 512 KiB of bytes
)

// Check says what is wrong with a file, or nil. The value of a secret is looked at when a machine boots.
func (f *File) Check() error {
	p := f.GuestPath
	switch {
	case !path.IsAbs(p) || path.Clean(p) != p || p == "/" || len(p) > maxFilePath || strings.ContainsRune(p, 0):
		return Invalidf("files: guest_path %q: use an absolute path without \"..\"", p)
	case (f.RawValue == "") == (f.SecretName == ""):
		return Invalidf("files: %s has both raw_value and secret_name, or neither: give one", p)
	case f.Mode&^0o777 != 0:
		return Invalidf("files: %s has mode %#o: use permission bits, at most 0777", p, f.Mode)
	case len(f.RawValue) > maxFileBase64:
		return Invalidf("files: %s has %d bytes of base64: use at most %d", p, len(f.RawValue), maxFileBase64)
	}
	for _, dir := range []string{"/proc", "/sys", "/dev"} {
		if p == dir || strings.HasPrefix(p, dir+"/") {
			return Invalidf("files: %s: %s is the kernel's", p, dir)
		}
	}
	if f.RawValue != "" {
		if _, err := base64.StdEncoding.DecodeString(strings.TrimSpace(f.RawValue)); err != nil {
			return Invalidf("files: raw_value of %s is not base64: %v", p, err).WithRemedy("write what `base64 -w0 FILE` prints")
		}
	}
	return nil
}
