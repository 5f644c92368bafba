package etcd_test

import (
	"testing"

	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/store/etcd"
	"github.com/volant-edge/volant/store/storetest"
)

func TestRemoteConformance(t *testing.T) {
	p := newPlanet(t)
	p.start(1, nil)
	storetest.Test(t, func(t *testing.T) store.Store {
		t.Parallel()
		r := etcd.NewRemote(etcd.RemoteConfig{Endpoints: p.endpoints(1), External: true, Prefix: t.Name() + "/"})
		t.Cleanup(func() {
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
		if err := r.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		return r
	})
}
