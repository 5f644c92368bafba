package volanttest_test

import (
	"context"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/volanttest"
	"github.com/volant-edge/volant/why"
)

// A release whose machines do not come to listen is not multiplied, however many connections wait for it.
func TestAReleaseThatNeverListensIsNotMultiplied(t *testing.T) {
	for name, tc := range map[string]struct {
		image volant.Digest
		port  int
	}{
		"it listens elsewhere":       {volanttest.Image, volanttest.Port + 1},
		"it crashes before":          {volanttest.Crashing, volanttest.Port},
		"it ends as soon as it runs": {volanttest.Broken, volanttest.Port},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := volanttest.New(t)
				defer p.Close()
				addr, _ := p.Deploy("web", tc.image, func(r *api.CreateRelease) {
					r.Config.Services[0].InternalPort = tc.port
					many := 1000
					r.Scale = &api.ScalePatch{MaxPerPeer: &many}
				})
				dial := func() (net.Conn, error) { return p.Net.Dial(context.Background(), addr) }
				var all []net.Conn
				for n := 20; n <= 100; n += 20 { // more wait than a machine could take
					conns, _ := served(t, p, dial, n, 70*time.Second)
					all = append(all, conns...)
				}
				for _, c := range all {
					c.Close()
				}
				if n := len(p.Machines("web")); n > 3 {
					t.Errorf("%d machines were made of a release that never listened, want at most 3", n)
				}
				broken := func(r why.Record) bool { return r.Rule == "broken" }
				if !slices.ContainsFunc(p.Why.Query(why.Query{Kinds: []why.Kind{why.Scale}}), broken) {
					t.Error("nothing says that the release is broken")
				}
			})
		})
	}
}
