package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/image"
	"github.com/volant-edge/volant/peer"
)

const (
	callHave = "POST /blobs/have"
	callBlob = "GET /blobs/"
	callKeep = "POST /blobs/keep"

	askedAtOnce  = 16                     // nodes that are asked who has a blob at a time
	answerWithin = 2 * time.Second        // for one of them
	enough       = 150 * time.Millisecond // after which nobody is waited for when each blob has a node
	servedAtOnce = 64                     // blobs that are sent at a time
	sentWithin   = 5 * time.Minute        // for one request
	keepWithin   = 5 * time.Second        // to ask a node to keep an image
	keepNext     = 64                     // images that wait to be kept
)

// haveAsk asks a node what it has of some blobs.
type haveAsk struct {
	Digests []volant.Digest `json:"digests"`
	Mark    string          `json:"mark,omitempty"` // of the organization that matters alone
}

// Others are the image stores of the other nodes. It is made before the Platform that joins it to them.
type Others struct {
	p       *Platform
	serving chan struct{}
	keep    chan volant.Digest // images that this node is to have as well

	mu     sync.Mutex // guards copied
	copied map[volant.Digest]bool
}

// NewOthers returns Others without nodes.
func NewOthers() *Others {
	return &Others{
		serving: make(chan struct{}, servedAtOnce), keep: make(chan volant.Digest, keepNext), copied: map[volant.Digest]bool{},
	}
}

// join makes the other nodes of a platform's cluster known, and lets them read this node's blobs.
func (o *Others) join(p *Platform, s *image.Store) {
	o.p = p
	peer.Handle(p.peers, callHave, func(_ context.Context, _ volant.NodeID, in haveAsk) (any, error) {
		if len(in.Digests) > image.MaxAsked {
			return nil, volant.Invalidf("%d blobs are asked for, at most %d can be", len(in.Digests), image.MaxAsked)
		}
		return s.Held(in.Digests, in.Mark), nil
	})
	peer.Handle(p.peers, callKeep, func(_ context.Context, from volant.NodeID, d volant.Digest) (any, error) {
		if err := p.mayCall(from); err != nil {
			return nil, err
		}
		select {
		case o.keep <- d:
			return nil, nil
		default:
			return nil, volant.Errorf(volant.ErrUnavailable, "node %s has %d images to get already", p.Node, keepNext)
		}
	})
	p.peers.Raw(callBlob+"{digest}", func(w http.ResponseWriter, r peer.Request) error { return o.send(s, w, r) })
}

// send sends a blob, or a range of it.
func (o *Others) send(s *image.Store, w http.ResponseWriter, r peer.Request) error {
	d := volant.Digest(r.PathValue("digest"))
	if !d.Valid() {
		return volant.Invalidf("digest %q: use sha256: and 64 hex digits", r.PathValue("digest"))
	}
	select {
	case o.serving <- struct{}{}:
		defer func() { <-o.serving }()
	default:
		return volant.Errorf(volant.ErrUnavailable, "node %s sends %d blobs already", o.p.Node, servedAtOnce)
	}
	if !s.Has(d) { // spares it
		return volant.Errorf(volant.ErrNotFound, "blob %s is not on node %s", string(d), o.p.Node)
	}
	f, _, err := s.Blob(d)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read from
	content, ok := f.(io.ReadSeeker)
	if !ok {
		return volant.Errorf(volant.ErrUnserved, "blob %s cannot be read in parts", string(d))
	}
	rc := http.NewResponseController(w)
	_ = rc.SetWriteDeadline(time.Now().Add(sentWithin))     // a connection that cannot have one has no slow reader
	defer func() { _ = rc.SetWriteDeadline(time.Time{}) }() // as above
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r.Request, "", time.Time{}, content)
	return nil
}

// near are the other nodes: those that may well have an image before the others, then by their distance.
func (o *Others) near(ds []volant.Digest) []volant.NodeID {
	if o.p == nil || !o.p.Mesh.IsValid() {
		return nil
	}
	snap := o.p.cat.Snapshot()
	likely := map[volant.NodeID]bool{}
	for app := range snap.Apps() {
		for _, m := range snap.Machines(app) {
			if !m.Tombstone && slices.Contains(ds, m.Image) {
				likely[m.Node] = true
			}
		}
	}
	far := newRegions(snap, o.p.Node, o.p.Region, o.p.known)
	type other struct {
		id     volant.NodeID
		rank   int
		behind time.Duration
	}
	var all []other
	for id, n := range snap.Nodes() {
		if id == o.p.Node || n.Tombstone || n.Mesh.Key == "" {
			continue
		}
		x := other{id: id, behind: cmp.Or(o.p.known.rtt(id), far.distance(o.p.Region, n.Region))}
		switch {
		case o.p.known.silent(id):
			x.rank = 2
		case !likely[id] && !n.Has(volant.RoleControl): // images are uploaded to control nodes
			x.rank = 1
		}
		all = append(all, x)
	}
	slices.SortFunc(all, func(a, b other) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.behind, b.behind), cmp.Compare(a.id, b.id))
	})
	out := make([]volant.NodeID, len(all))
	for i, x := range all {
		out[i] = x.id
	}
	return out
}

// Have is image.Peers'.
func (o *Others) Have(ctx context.Context, ds []volant.Digest) ([]image.Holding, error) {
	all := o.ask(ctx, false, haveAsk{Digests: ds}, func(all []image.Holding) bool {
		for _, d := range ds {
			if !holds(all, func(h image.Held) bool { return h.Digest == d }) {
				return false
			}
		}
		return true
	})
	slices.SortStableFunc(all, func(a, b image.Holding) int { return cmp.Compare(o.behind(a.Node), o.behind(b.Node)) })
	return all, ctx.Err()
}

// behind is the round trip to a node, for their order.
func (o *Others) behind(id volant.NodeID) time.Duration {
	if rtt := o.p.known.rtt(id); rtt > 0 {
		return rtt
	}
	snap := o.p.cat.Snapshot()
	n, ok := snap.Node(id)
	if !ok {
		return time.Hour
	}
	return newRegions(snap, o.p.Node, o.p.Region, o.p.known).distance(o.p.Region, n.Region)
}

func holds(all []image.Holding, fits func(image.Held) bool) bool {
	return slices.ContainsFunc(all, func(h image.Holding) bool { return slices.ContainsFunc(h.Blobs, fits) })
}

// ask asks nodes what they have, some at a time, until the answers do. Then the rest of those that were asked is waited
// for a moment only. Heard leaves out nodes that are silent.
func (o *Others) ask(ctx context.Context, heard bool, what haveAsk, do func([]image.Holding) bool) []image.Holding {
	var all []image.Holding
	nodes := o.near(what.Digests)
	if heard {
		nodes = slices.DeleteFunc(nodes, o.p.known.silent)
	}
	for wave := range slices.Chunk(nodes, askedAtOnce) {
		wctx, cancel := context.WithTimeout(ctx, answerWithin)
		answers := make(chan image.Holding, len(wave))
		for _, id := range wave {
			go func() {
				h := image.Holding{Node: id}
				h.Err = o.p.calls.Call(wctx, id, callHave, what, &h.Blobs)
				answers <- h
			}()
		}
		var moment <-chan time.Time
		for left := len(wave); left > 0; left-- {
			select {
			case h := <-answers:
				all = append(all, h)
			case <-moment:
				left = 0
			}
			if moment == nil && do(all) {
				moment = time.After(enough)
			}
		}
		cancel()
		if do(all) || ctx.Err() != nil {
			break
		}
	}
	return all
}

// owns says whether an organization has a blob on another node.
func (o *Others) owns(ctx context.Context, org volant.OrgID, d volant.Digest) bool {
	what := haveAsk{Digests: []volant.Digest{d}}
	if org != image.AnyOrg {
		what.Mark = image.MarkOf(org)
	}
	fits := func(h image.Held) bool {
		return h.Digest == d && (what.Mark == "" || slices.Contains(h.Orgs, what.Mark))
	}
	return holds(o.ask(ctx, true, what, func(all []image.Holding) bool { return holds(all, fits) }), fits)
}

// Open is image.Peers'.
func (o *Others) Open(ctx context.Context, node volant.NodeID, d volant.Digest, off, n int64) (io.ReadCloser, error) {
	if n == 0 {
		return http.NoBody, nil
	}
	head := http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", off, off+n-1)}}
	res, err := o.p.calls.Open(ctx, node, callBlob+string(d), nil, head)
	if err != nil {
		return nil, err
	}
	var from int64
	if _, err := fmt.Sscanf(res.Header.Get("Content-Range"), "bytes %d-", &from); err != nil || from != off || res.StatusCode != http.StatusPartialContent {
		return nil, errors.Join(volant.Errorf(volant.ErrUnavailable, "node %s sends another part of blob %s than was asked for", node, string(d)), res.Body.Close())
	}
	return res.Body, nil
}

// run gets the images that this node is to keep, one after the other.
func (o *Others) run(ctx context.Context, s *image.Store) {
	for {
		select {
		case d := <-o.keep:
			if err := s.Complete(ctx, d, nil); err != nil && ctx.Err() == nil {
				o.p.Log.Warn("an image of another node is not here yet", "digest", string(d), "err", err)
			}
		case <-ctx.Done():
			return
		}
	}
}

// spread has two other nodes get an image that came to this one, so that it is not lost with it: the nearest, and the
// nearest in another region. It does not wait for them.
func (o *Others) spread(ctx context.Context, d volant.Digest) {
	to := o.keepers(d)
	o.mu.Lock()
	done := o.copied[d]
	if len(o.copied) >= 1000 {
		clear(o.copied) // they are asked once more, and have it
	}
	o.copied[d] = o.copied[d] || len(to) > 0
	o.mu.Unlock()
	if done {
		return
	}
	for _, id := range to {
		go func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keepWithin)
			defer cancel()
			if err := o.p.calls.Call(ctx, id, callKeep, d, nil); err != nil {
				o.p.Log.Warn("a node does not keep an image", "node", id, "digest", string(d), "err", err)
			}
		}()
	}
}

// keepers are the nodes that are to have an image of this one as well.
func (o *Others) keepers(d volant.Digest) []volant.NodeID {
	var first, abroad volant.NodeID
	for _, id := range o.near([]volant.Digest{d}) {
		n, ok := o.p.cat.Snapshot().Node(id)
		switch {
		case !ok, !n.Has(volant.RoleHost) && !n.Has(volant.RoleControl), o.p.known.silent(id):
		case first == "":
			first = id
		case abroad == "" && n.Region != o.p.Region:
			abroad = id
		}
	}
	return slices.DeleteFunc([]volant.NodeID{first, abroad}, func(id volant.NodeID) bool { return id == "" })
}
