package mesh_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/volant-edge/volant/datadir"
	"github.com/volant-edge/volant/internal/atomicfile"
	"github.com/volant-edge/volant/mesh"
)

func openDir(t testing.TB) *datadir.Dir {
	t.Helper()
	d, err := datadir.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func openKeys(t testing.TB, d *datadir.Dir) *mesh.Keys {
	t.Helper()
	k, err := mesh.OpenKeys(d)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestKeyIsMadeOnceAndSwitched(t *testing.T) {
	d := openDir(t)
	k := openKeys(t, d)
	first := k.Use
	if again := openKeys(t, d); again.Use != first || !again.Next.IsZero() {
		t.Fatal("another key after a restart")
	}
	if fi, err := os.Stat(d.Path("mesh", "key")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode of the key's file: %v %v", fi.Mode(), err)
	}
	if k.Switch() == nil {
		t.Error("switched to no key")
	}
	for range 2 { // the second asks for nothing new
		if err := k.Renew(); err != nil {
			t.Fatal(err)
		}
	}
	next := openKeys(t, d).Next
	if next.IsZero() || next != k.Next || next == first {
		t.Fatal("the next key is not kept")
	}
	if err := k.Switch(); err != nil {
		t.Fatal(err)
	}
	if after := openKeys(t, d); after.Use != next || !after.Next.IsZero() {
		t.Error("the switch is not kept")
	}
}

func TestDamagedKeyIsNotReplaced(t *testing.T) {
	d := openDir(t)
	openKeys(t, d)
	if err := os.WriteFile(d.Path("mesh", "key"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := mesh.OpenKeys(d); !errors.Is(err, atomicfile.ErrDamaged) {
		t.Errorf("got %v", err)
	}
}

// From RFC 7748 §6.1.
func TestPublicKey(t *testing.T) {
	var p mesh.Private
	copy(p[:], "\x77\x07\x6d\x0a\x73\x18\xa5\x7d\x3c\x16\xc1\x72\x51\xb2\x66\x45\xdf\x4c\x2f\x87\xeb\xc0\x99\x2a\xb1\x77\xfb\xa5\x1d\xb9\x2c\x2a")
	if got, want := p.Public().String(), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if s := fmt.Sprintf("%v %+v %#v %s", p, p, p, p); strings.Contains(s, "119") || strings.Contains(s, "77") {
		t.Errorf("a private key is printed: %s", s)
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add("hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=")
	f.Add("x")
	f.Fuzz(func(t *testing.T, text string) {
		k, err := mesh.ParseKey(text)
		if err == nil && text != "" && k.String() != text {
			t.Errorf("%q became %q", text, k)
		}
	})
}
