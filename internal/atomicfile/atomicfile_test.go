package atomicfile_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/volant-edge/volant/internal/atomicfile"
)

func TestWriteReplacesWholeFileWithPermissions(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	litter := filepath.Join(dir, ".tmp-f-123")
	if err := os.WriteFile(litter, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, data := range []string{"a long first content", "short"} {
		if err := atomicfile.Write(path, []byte(data), 0o640); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != data {
			t.Fatalf("read %q, %v; want %q", got, err, data)
		}
	}
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if fi.Mode().Perm() != 0o640 {
		t.Errorf("mode is %v, want 0640", fi.Mode())
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(names) != 1 {
		t.Errorf("directory holds %v, want only the file", names)
	}
}

func TestFailedWriteKeepsTheOldFileAndLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := os.MkdirAll(filepath.Join(path, "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Write(path, []byte("x"), 0o600); err == nil {
		t.Fatal("a directory with entries was replaced by a file")
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 1 {
		t.Errorf("directory holds %v, %v; want only what was there", names, err)
	}
}

func TestReadCheckedFindsEveryDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	data := []byte("wish and have")
	if err := atomicfile.WriteChecked(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := atomicfile.ReadChecked(path, 100); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("got %q, %v; want %q", got, err, data)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	damaged := map[string][]byte{"empty": {}, "appended": append(bytes.Clone(whole), 0)}
	for i := range whole {
		b := bytes.Clone(whole)
		b[i] ^= 1
		damaged["flipped byte"+string(rune('a'+i))] = b
		damaged["cut"+string(rune('a'+i))] = whole[:i]
	}
	for name, b := range damaged {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := atomicfile.ReadChecked(path, 100); !errors.Is(err, atomicfile.ErrDamaged) {
			t.Errorf("%s: error is %v, want ErrDamaged", name, err)
		}
	}
}

func TestReadCheckedBoundsWhatItReads(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := atomicfile.WriteChecked(path, make([]byte, 101), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := atomicfile.ReadChecked(path, 100); !errors.Is(err, atomicfile.ErrDamaged) {
		t.Errorf("error is %v, want ErrDamaged", err)
	}
	if _, err := atomicfile.ReadChecked(path, 101); err != nil {
		t.Error(err)
	}
}

func FuzzUnseal(f *testing.F) {
	f.Add([]byte{})
	f.Add(atomicfile.Seal(nil))
	f.Add(atomicfile.Seal([]byte("content")))
	f.Fuzz(func(t *testing.T, b []byte) {
		data, err := atomicfile.Unseal(b)
		if err == nil && !bytes.Equal(atomicfile.Seal(data), b) {
			t.Errorf("unsealed %q from what sealing does not give", data)
		}
	})
}

func TestSweepRemovesWhatWriteAmongMayLeave(t *testing.T) {
	dir := t.TempDir()
	litter := filepath.Join(dir, ".tmp-other-123")
	if err := os.WriteFile(litter, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.WriteAmong(filepath.Join(dir, "f"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := atomicfile.ReadChecked(filepath.Join(dir, "f"), 100)
	if err != nil || string(got) != "content" {
		t.Fatalf("read %q, %v; want content", got, err)
	}
	if _, err := os.Stat(litter); err != nil {
		t.Fatalf("the litter of another file: %v, want it there until Sweep", err)
	}
	atomicfile.Sweep(dir)
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("directory holds %v, %v; want only the file", names, err)
	}
}
