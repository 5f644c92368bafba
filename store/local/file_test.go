package local_test

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/store/local"
)

// Bytes from the file are a record as it was packed under that key, or refused; never a panic.
func FuzzUnpack(f *testing.F) {
	whole := local.Pack(store.Entry{Key: "app/a/a", Value: []byte("v"), Created: store.Revision{Epoch: 1, Rev: 2}, Mod: store.Revision{Epoch: 1, Rev: 3}}, 1)
	f.Add("app/a/a", whole)
	f.Add("app/a/b", whole) // under another key
	f.Add("app/a/a", whole[:20])
	f.Add("", []byte(nil))
	f.Fuzz(func(t *testing.T, key string, b []byte) {
		e, flags, err := local.Unpack(key, b)
		if err == nil && !bytes.Equal(local.Pack(e, flags), b) {
			t.Errorf("%x was read as %+v", b, e)
		}
		e = store.Entry{Key: key, Value: append([]byte{}, b...), Mod: store.Revision{Epoch: 7, Rev: uint64(len(b))}}
		got, _, err := local.Unpack(key, local.Pack(e, 0))
		if diff := cmp.Diff(e, got); err != nil || diff != "" {
			t.Errorf("%v\n%s", err, diff)
		}
		if _, _, err := local.Unpack(key+"x", local.Pack(e, 0)); err == nil {
			t.Error("a record was read under another key")
		}
	})
}
