package etcd_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/volant-edge/volant/store/etcd"
)

// database makes a bbolt file with several levels, long values, and nested and small buckets.
func database(t testing.TB, keys int) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoFreelistSync: true, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		if err := db.Update(func(tx *bbolt.Tx) error {
			for _, name := range []string{"key", "meta", "small"} {
				b, err := tx.CreateBucketIfNotExists([]byte(name))
				if err != nil {
					return err
				}
				n := map[string]int{"key": keys, "meta": 3, "small": 1}[name]
				for i := range n {
					key := fmt.Appendf(nil, "%08d", i)
					if round == 1 && i%3 == 0 {
						err = b.Delete(key)
					} else {
						err = b.Put(key, bytes.Repeat([]byte{byte(i)}, 10+(i%50)*20))
					}
					if err != nil {
						return err
					}
				}
				if inner, err := b.CreateBucketIfNotExists([]byte("inner")); err != nil || inner.Put([]byte("k"), make([]byte, 9000*round)) != nil {
					return fmt.Errorf("inner bucket: %w", err)
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCheckDatabase(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	if err := etcd.CheckDatabase(path, true); err != nil {
		t.Errorf("none yet: %v", err)
	}
	sound := database(t, 400)
	write(t, path, sound)
	if err := etcd.CheckDatabase(path, true); err != nil {
		t.Fatalf("sound: %v", err)
	}
	// A page which is not where the tree says, in turn for pages all over the file.
	found := 0
	const page = 4096
	pages := len(sound) / page
	for i := 2; i < pages; i += 3 {
		bad := bytes.Clone(sound)
		copy(bad[i*page:], make([]byte, 16))
		write(t, path, bad)
		if etcd.CheckDatabase(path, true) != nil {
			found++
		}
	}
	// Free pages, and those inside of long values, are nobody's.
	if checked := (pages - 2 + 2) / 3; found < checked/4 {
		t.Errorf("%d of %d destroyed pages were found", found, checked)
	}
}

// Whatever the bytes, the check ends without a panic.
func FuzzCheckDatabase(f *testing.F) {
	f.Add(database(f, 30)[:4*4096], uint16(3*4096+8), byte(1))
	f.Add([]byte("hello"), uint16(0), byte(0))
	sound := database(f, 50)
	f.Fuzz(func(t *testing.T, b []byte, at uint16, v byte) {
		path := filepath.Join(t.TempDir(), "db")
		write(t, path, b)
		first := etcd.CheckDatabase(path, true)
		if first == nil && len(b) > 0 && len(b) < 4096 {
			t.Errorf("%d bytes are a sound database", len(b))
		}
		damaged := bytes.Clone(sound)
		damaged[int(at)%len(damaged)] = v
		write(t, path, damaged)
		if err := etcd.CheckDatabase(path, true); err != nil && len(err.Error()) > 500 {
			t.Error(err)
		}
	})
}
