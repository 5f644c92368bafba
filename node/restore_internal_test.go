package node

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/datadir"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/store/etcd"
)

// An etcd that is not ours keeps the intent; when it has lost it, a node's copy makes it anew.
func TestExternalStore(t *testing.T) {
	free := func() netip.AddrPort {
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() // only its port was wanted
		return l.Addr().(*net.TCPAddr).AddrPort()
	}
	at := etcd.Addrs{Peer: free(), Client: free()}
	ext, err := etcd.Open(t.Context(), etcd.Config{Dir: t.TempDir(), Listen: at})
	if err != nil {
		t.Fatal(err)
	}
	defer ext.Close() // the test is over
	data := t.TempDir()
	cfg := StoreConfig{Endpoints: []string{"http://" + at.Client.String()}, Prefix: "one/"}
	org := &volant.Org{Meta: volant.Meta{Org: "o", ID: "o"}, Name: "x"}
	use := func(cfg StoreConfig, fn func(ctx context.Context, in *intent)) {
		t.Helper()
		dir, err := datadir.Open(data)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close() // the test would have failed
		in, err := openIntent(t.Context(), dir, intentConfig{Node: dir.Node(), External: cfg, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- in.run(ctx) }()
		fn(ctx, in)
		cancel()
		if err := errors.Join(<-done, in.close()); err != nil {
			t.Fatal(err)
		}
	}
	use(cfg, func(ctx context.Context, in *intent) {
		rev, err := store.Create(ctx, in.store, "test", org)
		if err != nil {
			t.Fatal(err)
		}
		for in.copy.Revision().Before(rev) {
			time.Sleep(5 * time.Millisecond)
		}
	})
	cfg.Prefix = "two/" // the etcd has lost it: nothing is here
	text, err := Restore(t.Context(), RestoreConfig{Data: data, Store: cfg})
	if err != nil {
		t.Fatal(text, err)
	}
	if _, err := Restore(t.Context(), RestoreConfig{Data: data, Store: cfg}); !errors.Is(err, volant.ErrPrecondition) {
		t.Errorf("restored twice: %v", err)
	}
	use(cfg, func(ctx context.Context, in *intent) {
		got, err := store.Load[volant.Org](ctx, in.store, org.Key())
		if err != nil || got.Name != "x" || in.down {
			t.Errorf("restored: %+v, %v", got, err)
		}
		for in.copy.Revision().Epoch != 2 {
			time.Sleep(5 * time.Millisecond)
		}
	})
	if left, err := filepath.Glob(filepath.Join(data, "etcd", "member")); err != nil || len(left) > 0 {
		t.Errorf("a member of its own: %v, %v", left, err)
	}
}
