package host_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/host"
)

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"schema":1,"machine":{"id":"00000000000001","run":"auto"},"state":"started"}`))
	f.Add([]byte(`{"schema":2,"machine":{"id":"00000000000001"}}`))
	f.Add([]byte(`{"schema":1,"machine":{"id":"../../etc/passwd"}}`))
	f.Add([]byte(`{"handle":{"pid":-1},"snapshot":{"dir":"/"},"restarts":["x"]}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		err := host.DecodeRecord(b) // it must not panic
		if err != nil && errors.Is(err, volant.ErrNotFound) {
			t.Error(err)
		}
	})
}

func FuzzLog(f *testing.F) {
	f.Add([]byte("{\"seq\":1,\"text\":\"a\"}\n{\"seq\":2,\"text\":\"b\"}\n"))
	f.Add([]byte("{\"seq\":1,\"text\":\"torn\n"))
	f.Add([]byte("\n\n\x00{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := host.ReadLog(path); len(got) > len(b) {
			t.Errorf("%d lines of %d bytes", len(got), len(b))
		}
	})
}

func TestNewerRecordIsRefusedWithACure(t *testing.T) {
	err := host.DecodeRecord([]byte(`{"schema":2,"machine":{"id":"00000000000001"}}`))
	var e *volant.Error
	if !errors.As(err, &e) || !errors.Is(err, volant.ErrPrecondition) || e.Remedy == "" {
		t.Errorf("got %v", err)
	}
}
