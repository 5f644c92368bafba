package guest_test

import (
	"errors"
	"path"
	"strings"
	"testing"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/guest"
)

func TestFilesThatNoGuestTakes(t *testing.T) {
	for _, f := range []guest.File{
		{Path: ""},
		{Path: "/"},
		{Path: "etc/x"},
		{Path: "/etc/../x"},
		{Path: "/etc/x/"},
		{Path: "/etc//x"},
		{Path: "/.."},
		{Path: "/a\x00b"},
		{Path: "/" + strings.Repeat("a", 4096)},
		{Path: "/proc/sys/x"},
		{Path: "/dev"},
		{Path: "/sys/x"},
		{Path: "/x", Mode: 0o4755},
		{Path: "/x", Data: make([]byte, guest.MaxFile+1)},
	} {
		if err := f.Check(); !errors.Is(err, volant.ErrInvalid) {
			t.Errorf("%.40q, mode %#o: %v, want kind invalid", f.Path, f.Mode, err)
		}
	}
	for _, f := range []guest.File{{Path: "/x"}, {Path: "/device/x", Mode: 0o777}, {Path: "/a/..b/c"}} {
		if err := f.Check(); err != nil {
			t.Error(err)
		}
	}
}

func FuzzFile(f *testing.F) {
	for _, p := range []string{"/etc/x", "/etc/../x", "..", "/a\x00", "/proc/1/mem", "//x"} {
		f.Add(p, uint32(0o644))
	}
	f.Fuzz(func(t *testing.T, p string, mode uint32) {
		file := guest.File{Path: p, Mode: mode}
		if file.Check() != nil {
			return
		}
		if !path.IsAbs(p) || path.Clean("/root"+p) != "/root"+p || mode > 0o777 {
			t.Errorf("%q with mode %#o is taken", p, mode)
		}
	})
}
