package node

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/control"
	"github.com/volant-edge/volant/image"
	"github.com/volant-edge/volant/image/imagetest"
	"github.com/volant-edge/volant/internal/ociarchive"
	"github.com/volant-edge/volant/live"
	"github.com/volant-edge/volant/peer"
	"github.com/volant-edge/volant/registry"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/store/storetest"
	"github.com/volant-edge/volant/volanttest/memnet"
)

// blobNode is a node as far as images go.
type blobNode struct {
	p      *Platform
	images *images
	end    context.CancelFunc
}

var (
	_ image.Peers     = (*Others)(nil)
	_ registry.Images = (*images)(nil)
)

// blobNodes are nodes in regions that reach each other by their mesh addresses. It must be called in a bubble.
func blobNodes(t *testing.T, regions ...volant.Region) []*blobNode {
	t.Helper()
	n, intent := &memnet.Network{}, storetest.New()
	var out []*blobNode
	for i, region := range regions {
		id := volant.NodeID(strings.Repeat(string(rune('1'+i)), 8))
		rec := &volant.Node{Meta: volant.Meta{Org: "o", ID: string(id)}, Region: region, Roles: allRoles(), Mesh: volant.Mesh{Key: "k"}}
		if _, err := store.Create(t.Context(), intent, "test", rec); err != nil {
			t.Fatal(err)
		}
		out = append(out, newBlobNode(t, n, intent, id, region))
	}
	synctest.Wait()
	return out
}

func newBlobNode(t *testing.T, n *memnet.Network, intent *storetest.Memory, id volant.NodeID, region volant.Region) *blobNode {
	t.Helper()
	addr := volant.MeshAddr(id)
	p := &Platform{Parts: Parts{
		Node: id, Region: region, Mesh: addr, PeerListen: n.Listen, Log: slog.New(slog.DiscardHandler),
		PeerDial: func(ctx context.Context, _, to string) (net.Conn, error) {
			return n.DialFrom(ctx, addr, netip.MustParseAddrPort(to))
		},
	}, known: newKnown(id), cat: catalog.New(catalog.Config{})}
	p.calls = peer.NewClient(p.PeerDial)
	p.peers = peer.New(peer.Config{Known: p.knownNode})
	p.Others = NewOthers()
	s, err := image.Open(t.TempDir(), image.Config{Peers: p.Others, Piece: 64 << 10, Stall: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	p.Others.join(p, s)
	im := newImages(s, ImageConfig{}, t.TempDir())
	im.others = p.Others
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() { _ = p.cat.Run(ctx, intent) })
	all.Go(func() { _ = p.servePeers(ctx) })
	all.Go(func() { p.Others.run(ctx, s) })
	t.Cleanup(func() {
		cancel()
		p.calls.Close()
		all.Wait() // calls that are under way have a moment to end
	})
	return &blobNode{p, im, cancel}
}

// upload has the image of an archive on a node, for acme.
func (n *blobNode) upload(t *testing.T) volant.Digest {
	t.Helper()
	body := bytes.Repeat([]byte("0123456789abcdef"), 16<<10)
	file, d := imagetest.Archive(t, ociarchive.Image{Layers: []ociarchive.Layer{ociarchive.Plain(imagetest.Layer(t, imagetest.File("f", string(body))))}})
	if _, err := n.images.Import(t.Context(), "oci-archive:"+file, nil); err != nil {
		t.Fatal(err)
	}
	if err := n.images.Grant("acme", d); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestImageOfOneNodeIsAnothers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := blobNodes(t, "ams", "dfw", "ord")
		d := nodes[0].upload(t)
		b := nodes[2].images
		if !b.Has("acme", d) || b.Has("evil", d) || b.Store.Has(d) {
			t.Errorf("before it came: acme has it: %v, evil: %v, here: %v", b.Has("acme", d), b.Has("evil", d), b.Store.Has(d))
		}
		if _, err := b.Rootfs(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		m, err := b.Manifest(d)
		if err != nil {
			t.Fatal(err)
		}
		nodes[0].end()
		synctest.Wait()
		for _, x := range m.Blobs {
			if !b.Has("acme", x.Digest) || b.Has("evil", x.Digest) {
				t.Errorf("blob %s is not acme's alone, once its node is gone", string(x.Digest))
			}
		}
		other := digestOf("never uploaded")
		if _, err := b.Rootfs(t.Context(), other); !errors.Is(err, volant.ErrUnavailable) || !strings.Contains(err.Error(), "11111111") {
			t.Errorf("an image that no node has: %v", err)
		}
	})
}

func digestOf(s string) volant.Digest { return image.DigestOf([]byte(s)) }

// Uploaded to one node, deployed by another; and then the first one dies.
func TestImageIsPreparedWhereItWasNotUploaded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := blobNodes(t, "ams", "ams", "dfw", "dfw")
		d := nodes[0].upload(t)
		if err := nodes[0].images.Prepare(t.Context(), d, nil); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		var has []bool
		for _, n := range nodes {
			has = append(has, n.images.Store.Has(d))
		}
		if !has[1] || !has[2] || has[3] {
			t.Errorf("nodes that have it: %v, want one more in its region and one in another", has)
		}
		nodes[0].end()
		if err := nodes[3].images.Prepare(t.Context(), d, nil); err != nil {
			t.Error(err)
		}
		if err := nodes[3].images.Grant("other", d); err != nil || !nodes[3].images.Has("other", d) {
			t.Errorf("Grant() = %v", err)
		}
	})
}

func TestNearestNodeIsAskedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := blobNodes(t, "ams", "dfw", "ord", "ams")
		p := nodes[0].p
		rtt := func(i int, d time.Duration, silent bool) {
			p.known.setPeer(live.PeerState{Node: nodes[i].p.Node, Epoch: 1, RTT: d, Heard: time.Now(), Silent: silent})
		}
		rtt(1, 90*time.Millisecond, false)
		rtt(2, 110*time.Millisecond, false)
		rtt(3, time.Millisecond, true)
		got := p.Others.near(nil)
		if len(got) != 3 || got[0] != nodes[1].p.Node || got[1] != nodes[2].p.Node || got[2] != nodes[3].p.Node {
			t.Errorf("asked %v, want those that are heard, nearest first", got)
		}
	})
}

func TestRegistryServesBlobsOfOtherNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := blobNodes(t, "ams", "dfw")
		d := nodes[0].upload(t)
		reg := registry.New(nodes[1].images, tags{cat: nodes[1].p.cat}, nil)
		get := func(org volant.OrgID) int {
			w := httptest.NewRecorder()
			reg.Serve(w, httptest.NewRequest(http.MethodGet, "/v2/"+string(org)+"/web/manifests/"+string(d), nil), registry.Caller{Org: org})
			return w.Code
		}
		if got := get("evil"); got != http.StatusNotFound {
			t.Errorf("another organization gets %d", got)
		}
		if got := get("acme"); got != http.StatusOK {
			t.Errorf("its organization gets %d", got)
		}
	})
}

func TestBlobsAreReadInRanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := blobNodes(t, "ams", "dfw")
		body := []byte("0123456789")
		d := image.DigestOf(body)
		if err := nodes[0].images.Store.Put(t.Context(), d, bytes.NewReader(body)); err != nil {
			t.Fatal(err)
		}
		o := nodes[1].p.Others
		read := func(d volant.Digest, off, n int64) (string, error) {
			r, err := o.Open(t.Context(), nodes[0].p.Node, d, off, n)
			if err != nil {
				return "", err
			}
			defer r.Close()
			raw, err := io.ReadAll(r)
			return string(raw), err
		}
		if got, err := read(d, 0, 10); got != "0123456789" || err != nil {
			t.Errorf("all of it: %q, %v", got, err)
		}
		if got, err := read(d, 3, 4); got != "3456" || err != nil {
			t.Errorf("a part: %q, %v", got, err)
		}
		if _, err := read(d, 10, 1); err == nil {
			t.Error("past its end there is something")
		}
		if _, err := read(digestOf("other"), 0, 1); !errors.Is(err, volant.ErrNotFound) {
			t.Errorf("a blob that is not there: %v", err)
		}
		if _, err := read("sha256:..%2f..%2fx", 0, 1); !errors.Is(err, volant.ErrInvalid) {
			t.Errorf("no digest: %v", err)
		}
		var out []image.Held
		err := nodes[1].p.calls.Call(t.Context(), nodes[0].p.Node, callHave, haveAsk{Digests: make([]volant.Digest, image.MaxAsked+1)}, &out)
		if !errors.Is(err, volant.ErrInvalid) {
			t.Errorf("too many digests: %v", err)
		}
	})
}

func TestImageOfRegistryRemembersItsReference(t *testing.T) {
	host := private(t, "ann", "right")
	auth := api.RegistryAuth{Username: "ann", Password: "right"}
	pull := control.Pull{Ref: host + "/web:1", Org: "acme", Auth: auth}
	d, err := testImages(t, ImageConfig{Private: []string{host}}).Resolve(t.Context(), pull, nil)
	if err != nil {
		t.Fatal(err)
	}
	im := testImages(t, ImageConfig{Private: []string{host}})
	creds := `{"auths":{"` + host + `":{"username":"ann","password":"right"}}}`
	if err := os.WriteFile(filepath.Join(im.data, "registries.json"), []byte(creds), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := im.origin(t.Context(), d, nil); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("nothing says where it is from: %v", err)
	}
	im.sources = func(volant.Digest) []source {
		return []source{{string(d), "acme"}, {"oci:/x", "acme"}, {host + "/web:1", "acme"}}
	}
	if err := im.origin(t.Context(), d, nil); err != nil || !im.Store.Owns("acme", d) {
		t.Errorf("origin() = %v", err)
	}
}
