package secret_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/secret"
)

func open(t *testing.T, dir string) *secret.Box {
	t.Helper()
	b, err := secret.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestASealedValueOpensInItsPlaceAlone(t *testing.T) {
	dir := t.TempDir()
	sealed, err := open(t, dir).Seal("app_1/KEY", []byte("hunter2"))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sealed, []byte("hunter2")) {
		t.Error("the sealed value shows the plain one")
	}
	again := open(t, dir) // the key is read back
	got, err := again.Open("app_1/KEY", sealed)
	if err != nil || string(got) != "hunter2" {
		t.Fatalf("got %q, %v", got, err)
	}
	for _, place := range []string{"app_2/KEY", "app_1/KEY2", ""} {
		if got, err := again.Open(place, sealed); !errors.Is(err, volant.ErrPrecondition) {
			t.Errorf("opened for %q: %q, %v", place, got, err)
		}
	}
	other := open(t, t.TempDir())
	if _, err := other.Open("app_1/KEY", sealed); !errors.Is(err, volant.ErrPrecondition) {
		t.Errorf("another key: %v", err)
	}
}

func TestTheSameValueIsSealedDifferentlyEachTime(t *testing.T) {
	b := open(t, t.TempDir())
	one, err1 := b.Seal("p", []byte("v"))
	two, err2 := b.Seal("p", []byte("v"))
	if err := errors.Join(err1, err2); err != nil || bytes.Equal(one, two) {
		t.Errorf("%x and %x, %v", one, two, err)
	}
}

func TestEveryChangedByteIsFound(t *testing.T) {
	b := open(t, t.TempDir())
	sealed, err := b.Seal("p", []byte("value"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range sealed {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		if got, err := b.Open("p", bad); err == nil {
			t.Errorf("byte %d changed, and it opens as %q", i, got)
		}
	}
	for n := range sealed {
		if _, err := b.Open("p", sealed[:n]); err == nil {
			t.Errorf("%d bytes of it open", n)
		}
	}
}

func TestDigestsDoNotTellThatTwoAppsShareAValue(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	one := b.Digest("app_1/KEY", []byte("v"))
	if same := open(t, dir).Digest("app_1/KEY", []byte("v")); same != one {
		t.Errorf("the same value has digests %s and %s", one, same)
	}
	for what, other := range map[string]string{
		"other app":   b.Digest("app_2/KEY", []byte("v")),
		"other value": b.Digest("app_1/KEY", []byte("w")),
		"moved edge":  b.Digest("app_1/KE", []byte("Yv")),
		"other key":   open(t, t.TempDir()).Digest("app_1/KEY", []byte("v")),
	} {
		if other == one {
			t.Errorf("%s: the same digest", what)
		}
	}
}

func TestAKeyThatIsDamagedOrOpenToOthersIsNotUsedNorReplaced(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"damaged": func(p string) error { return os.WriteFile(p, []byte("0123456789abcdef0123456789abcdef"), 0o600) },
		"empty":   func(p string) error { return os.Truncate(p, 0) },
		"mode":    func(p string) error { return os.Chmod(p, 0o640) },
		"a directory": func(p string) error {
			return errors.Join(os.Remove(p), os.Mkdir(p, 0o700))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			open(t, dir)
			path := filepath.Join(dir, secret.KeyFile)
			if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
				t.Fatalf("key file: %v, %v", st, err)
			}
			if err := spoil(path); err != nil {
				t.Fatal(err)
			}
			before, err := os.Lstat(path)
			if err != nil {
				t.Fatal(err)
			}
			_, err = secret.Open(dir)
			if !errors.Is(err, volant.ErrPrecondition) || !strings.Contains(err.Error(), path) {
				t.Errorf("got %v", err)
			}
			if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
				t.Errorf("the file was replaced: %v", err)
			}
		})
	}
}

func TestTooLongAValueIsRefused(t *testing.T) {
	b := open(t, t.TempDir())
	if _, err := b.Seal("p", make([]byte, secret.MaxPlain+1)); !errors.Is(err, volant.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	b, err := secret.New(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		f.Fatal(err)
	}
	good, err := b.Seal("app_1/KEY", []byte("value"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add("app_1/KEY", good)
	f.Add("app_2/KEY", good)
	f.Add("", []byte{})
	f.Add("", []byte{1})
	f.Add("p", bytes.Repeat([]byte{1}, 41))
	f.Fuzz(func(t *testing.T, aad string, sealed []byte) {
		plain, err := b.Open(aad, sealed)
		if err == nil && (aad != "app_1/KEY" || string(plain) != "value") { // what this key sealed, and nothing else
			t.Fatalf("forged: %q opens for %q as %q", sealed, aad, plain)
		}
	})
}

func FuzzSeal(f *testing.F) {
	b, err := secret.New(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		f.Fatal(err)
	}
	f.Add("app_1/KEY", []byte("value"))
	f.Add("", []byte{})
	f.Fuzz(func(t *testing.T, aad string, plain []byte) {
		sealed, err := b.Seal(aad, plain)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := b.Open(aad, sealed); err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("got %q, %v", got, err)
		}
	})
}
