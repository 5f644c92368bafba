package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/guest"
)

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\n# comment\nweb:x:33:34::/srv/web:/bin/false\nbroken:x:a:b\nnohome:x:40:41:::\n"
	group  = "root:x:0:\nweb:x:34:\nlog:x:4:root,web\nssl:x:99:web\nbroken\n"
)

func TestResolveUser(t *testing.T) {
	pw, gr := splitLines(strings.NewReader(passwd)), splitLines(strings.NewReader(group))
	for who, want := range map[string]identity{
		"":         {home: "/root", groups: []uint32{4}},
		"root":     {home: "/root", groups: []uint32{4}},
		"web":      {uid: 33, gid: 34, groups: []uint32{4, 99}, home: "/srv/web"},
		"33":       {uid: 33, gid: 34, groups: []uint32{4, 99}, home: "/srv/web"},
		"web:log":  {uid: 33, gid: 4, home: "/srv/web"},
		"web:77":   {uid: 33, gid: 77, home: "/srv/web"},
		"1000":     {uid: 1000, home: "/"},
		"1000:log": {uid: 1000, gid: 4, home: "/"},
		"nohome":   {uid: 40, gid: 41, home: "/"},
		":log":     {gid: 4, home: "/root"},
	} {
		got, err := resolveUser(who, pw, gr)
		if err != nil || !cmp.Equal(got, want, cmp.AllowUnexported(identity{})) {
			t.Errorf("%q: got %+v, %v, want %+v", who, got, err, want)
		}
	}
	for _, who := range []string{"nobody", "web:nogroup", "-1", "4294967296", "broken"} {
		if got, err := resolveUser(who, pw, gr); err == nil {
			t.Errorf("%q: got %+v, want an error", who, got)
		}
	}
	if got, err := resolveUser("", nil, nil); err != nil || got.home != "/" || got.uid != 0 {
		t.Errorf("an image without users: got %+v, %v", got, err)
	}
}

func FuzzResolveUser(f *testing.F) {
	f.Add("web:log", passwd, group)
	f.Fuzz(func(t *testing.T, who, pw, gr string) {
		id, err := resolveUser(who, splitLines(strings.NewReader(pw)), splitLines(strings.NewReader(gr)))
		if err == nil && id.home == "" {
			t.Errorf("%q: no home", who)
		}
	})
}

func TestPutFile(t *testing.T) {
	top := t.TempDir()
	read := func(path string) (string, os.FileMode) {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(top, path))
		if err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(filepath.Join(top, path))
		if err != nil {
			t.Fatal(err)
		}
		return string(b), st.Mode().Perm()
	}
	put := func(path, text string, mode uint32) error {
		return putFile(top, guest.File{Path: path, Mode: mode, Data: []byte(text)})
	}
	for range 2 { // the second in place of the first
		if err := put("/a/b/key", "secret", 0o400); err != nil {
			t.Fatal(err)
		}
	}
	if text, mode := read("/a/b/key"); text != "secret" || mode != 0o400 {
		t.Errorf("got %q with mode %v", text, mode)
	}
	if err := os.Symlink("b", filepath.Join(top, "a/link")); err != nil {
		t.Fatal(err)
	}
	if err := put("/a/link/key", "other", 0o644); err != nil {
		t.Fatal(err)
	}
	if text, mode := read("/a/b/key"); text != "other" || mode != 0o644 {
		t.Errorf("through a link of the image: got %q with mode %v", text, mode)
	}
	if err := put("/a/b", "x", 0o644); !errors.Is(err, volant.ErrInvalid) {
		t.Errorf("in place of a directory: %v", err)
	}
	if err := put("/a/b/key/x", "x", 0o644); !errors.Is(err, volant.ErrInvalid) {
		t.Errorf("below a file: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(top, "a/.volant-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestLookPath(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"a/prog": 0o755, "b/prog": 0o755, "a/text": 0o644, "b/text": 0o711} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	path := dir + "/none:" + dir + "/a:" + dir + "/b"
	for _, c := range []struct{ name, path, want string }{
		{"prog", path, dir + "/a/prog"},
		{"text", path, dir + "/b/text"},
		{"./b/prog", "", dir + "/b/prog"},
		{dir + "/b/text", "", dir + "/b/text"},
		{"prog", "b", dir + "/b/prog"},
	} {
		if got, err := lookPath(c.name, c.path, dir); got != c.want || err != nil {
			t.Errorf("%q in %q: got %q, %v, want %q", c.name, c.path, got, err, c.want)
		}
	}
	for _, name := range []string{"", "other", "./a", dir + "/a/text", dir + "/other"} {
		if got, err := lookPath(name, path, dir); err == nil {
			t.Errorf("%q: got %q, want an error", name, got)
		}
	}
}

func TestEtcFiles(t *testing.T) {
	c := guest.Config{Hostname: "m1", Hosts: map[string]string{"b": "10.0.0.2", "a": "10.0.0.1"}}
	c.Net.Addr, c.Net.Addr6 = netip.MustParsePrefix("10.1.0.5/32"), netip.MustParsePrefix("fd00::5/128")
	c.Net.DNS = []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd00::1")}
	got := etcFiles(c)
	if want := "10.1.0.5\tm1\nfd00::5\tm1\n10.0.0.1\ta\n10.0.0.2\tb\n"; !strings.HasSuffix(got["hosts"], want) {
		t.Errorf("hosts: got %q, want it to end in %q", got["hosts"], want)
	}
	if want := "nameserver 10.1.0.1\nnameserver fd00::1\n"; got["resolv.conf"] != want {
		t.Errorf("resolv.conf: got %q, want %q", got["resolv.conf"], want)
	}
	if _, ok := etcFiles(guest.Config{})["resolv.conf"]; ok {
		t.Error("without name servers the image's resolv.conf must stay")
	}
}

func TestCopyLines(t *testing.T) {
	long := strings.Repeat("z", 3*maxPiece)
	for _, c := range []struct {
		in   string
		want []string
	}{
		{"a\nb\r\n\nc", []string{"a", "b", "", "c"}},
		{"", nil},
		{"\n", []string{""}},
		{"x\n" + long + "\ny\n", []string{"x", long, "y"}},
	} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, _ = fmt.Fprint(w, c.in) // shows as missing lines
			_ = w.Close()
		}()
		var got []string
		copyLines(r, func(l string) { got = append(got, l) })
		_ = r.Close() // read to its end
		if strings.Join(got, "|") != strings.Join(c.want, "|") && len(c.in) < 100 {
			t.Errorf("%q: got %q, want %q", c.in, got, c.want)
		}
		if all := strings.Join(got, ""); all != strings.Join(c.want, "") {
			t.Errorf("%.20q: got %d bytes, want %d", c.in, len(all), len(strings.Join(c.want, "")))
		}
	}
}

func TestFindDisks(t *testing.T) {
	dir := t.TempDir()
	disk := func(name, ro string) {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "ro"), []byte(ro+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	disk("loop0", "1")
	if image, scratch, err := findDisks(dir); image != "" || scratch != "" || err != nil {
		t.Errorf("no disk: got %q, %q, %v", image, scratch, err)
	}
	disk("vda", "0")
	disk("vdb", "1")
	disk("vdc", "0")
	image, scratch, err := findDisks(dir)
	if image != "/dev/vdb" || scratch != "/dev/vda" || err != nil {
		t.Errorf("got %q, %q, %v, want /dev/vdb, /dev/vda", image, scratch, err)
	}
}

func TestFindPort(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"vport1p1": "other\n", "vport1p2": "ctl\n"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "name"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := findPort(dir); got != "vport1p2" {
		t.Errorf("got %q, want vport1p2", got)
	}
	if got := findPort(dir + "/none"); got != "" {
		t.Errorf("no ports: got %q", got)
	}
}
