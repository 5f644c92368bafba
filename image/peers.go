package image

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/volant-edge/volant"
)

// Peers are the stores of the other nodes.
type Peers interface {
	// Have asks the other nodes for blobs. Answers come nearest node first, also those of nodes that have none
	// of them or did not answer.
	Have(ctx context.Context, ds []volant.Digest) ([]Holding, error)
	// Open reads n bytes of a node's blob from off on.
	Open(ctx context.Context, node volant.NodeID, d volant.Digest, off, n int64) (io.ReadCloser, error)
}

// Holding is what a node has of the blobs that it was asked for.
type Holding struct {
	Node  volant.NodeID
	Err   error // it did not answer
	Blobs []Held
}

// Held is a blob that a node has.
type Held struct {
	Blob
	Orgs []string `json:"orgs,omitempty"` // whose it is, as MarkOf names them; maxMarks at most
}

// Bounds of what is fetched from other nodes.
const (
	// MaxAsked bounds the blobs that one question is about: all of an image.
	MaxAsked = maxLayers + 2
	maxMarks = 500 // organizations of one blob that are told
	rounds   = 4   // of asking who has what, while it moves
	between  = time.Second
)

// Held says which of the blobs are here, and spares them as Has does. Given an organization's mark, only that
// one is looked for among those whose they are.
func (s *Store) Held(ds []volant.Digest, mark string) []Held {
	var orgs []string
	if mark != "" {
		orgs = []string{mark}
	} else if entries, err := os.ReadDir(s.path("orgs")); err == nil {
		for _, e := range entries {
			orgs = append(orgs, e.Name())
		}
	}
	var out []Held
	most := 40 * maxMarks // in all
	for _, d := range ds[:min(len(ds), MaxAsked)] {
		if !s.Has(d) {
			continue
		}
		st, err := os.Stat(s.blobPath(d))
		if err != nil {
			continue
		}
		h := Held{Blob: Blob{Digest: d, Size: st.Size()}}
		now := time.Now()
		for _, o := range orgs {
			if !markRule.MatchString(o) || len(h.Orgs) == maxMarks || most == 0 {
				continue
			}
			if os.Chtimes(s.path("orgs", o, d.Hex()), now, now) == nil {
				h.Orgs = append(h.Orgs, o)
				most--
			}
		}
		out = append(out, h)
	}
	return out
}

// Complete makes sure that all blobs of an image are here: it gets those that are not from other nodes, and the
// image from where it came from first if no node has them. Progress may be nil; it is called from several
// goroutines, one at a time.
func (s *Store) Complete(ctx context.Context, d volant.Digest, progress func(Progress)) error {
	if !d.Valid() {
		return volant.Invalidf("image: %s", d)
	}
	if s.complete(d) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Within)
	defer cancel()
	began := time.Now()
	bar := &sharedMeter{Progress: Progress{Phase: "fetch"}, tell: progress}
	err := s.rounds(ctx, bar, func() error { return s.gather(ctx, d, bar) })
	if err == nil {
		s.log.Info("image came from other nodes", "digest", string(d), "bytes", bar.landed(0), "took", time.Since(began))
		return nil
	}
	if s.cfg.Origin == nil || ctx.Err() != nil || errors.Is(err, volant.ErrInvalid) || errors.Is(err, volant.ErrNoCapacity) {
		return fmt.Errorf("image %s: %w", string(d), err)
	}
	s.log.Info("image is asked of its registry", "digest", string(d), "err", err)
	oerr := s.cfg.Origin(ctx, d, progress)
	switch {
	case errors.Is(oerr, errors.ErrUnsupported): // it came from no registry
		return fmt.Errorf("image %s: %w", string(d), err)
	case oerr != nil:
		return fmt.Errorf("image %s: %w (and before that: %w)", string(d), oerr, err)
	}
	return nil
}

// complete says whether all blobs of an image are here, and spares them.
func (s *Store) complete(d volant.Digest) bool {
	raw, err := s.Document(d)
	if err != nil {
		return false
	}
	if MediaType(raw, "").IsIndex() {
		ours, err := s.ForPlatform(d)
		return errors.Is(err, volant.ErrInvalid) || err == nil && ours != d && s.complete(ours)
	}
	m, _, err := parseManifest(d, raw)
	if err != nil {
		return true // what it is will be said by who reads it
	}
	return len(s.missing(m.Blobs)) == 0
}

func (s *Store) missing(blobs []Blob) []Blob {
	return slices.DeleteFunc(slices.Clone(blobs), func(b Blob) bool { return s.Has(b.Digest) })
}

// Bring makes sure that one blob is here.
func (s *Store) Bring(ctx context.Context, d volant.Digest) error {
	if !d.Valid() {
		return volant.Invalidf("%s", d)
	}
	if s.Has(d) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Within)
	defer cancel()
	bar := &sharedMeter{Progress: Progress{Phase: "fetch"}}
	err := s.rounds(ctx, bar, func() error {
		all, err := s.ask(ctx, []volant.Digest{d})
		if err != nil {
			return err
		}
		bar.begin(0)
		var sizes []int64
		for _, h := range all {
			for _, b := range h.Blobs {
				if !slices.Contains(sizes, b.Size) {
					sizes = append(sizes, b.Size)
				}
			}
		}
		for _, n := range sizes { // one of another size than the others' is damaged
			if err = s.fetch(ctx, []Blob{{d, n}}, all, bar); err == nil {
				return nil
			}
		}
		return cmp.Or(err, nobody(d, all))
	})
	if err != nil {
		return fmt.Errorf("blob %s: %w", string(d), err)
	}
	return nil
}

// rounds does fn again while that brings it on.
func (s *Store) rounds(ctx context.Context, bar *sharedMeter, fn func() error) error {
	for n := 1; ; n++ {
		before := bar.landed(0)
		err := fn()
		var broke *brokenOff
		if err == nil || !errors.As(err, &broke) || n >= rounds && bar.landed(0) <= before || ctx.Err() != nil {
			return err
		}
		select {
		case <-time.After(between):
		case <-ctx.Done():
			return err
		}
	}
}

// brokenOff is the error of a transfer that may go on when it is tried again.
type brokenOff struct{ error }

func (b *brokenOff) Unwrap() error { return b.error }

// ask asks the other nodes, and takes of their answers what can be.
func (s *Store) ask(ctx context.Context, ds []volant.Digest) ([]Holding, error) {
	if s.cfg.Peers == nil {
		return nil, nobody(ds[0], nil)
	}
	all, err := s.cfg.Peers.Have(ctx, ds)
	for i := range all {
		h := &all[i]
		seen := map[volant.Digest]bool{}
		h.Blobs = slices.DeleteFunc(h.Blobs, func(b Held) bool {
			bad := seen[b.Digest] || !slices.Contains(ds, b.Digest) || b.Size < 0 || b.Size > s.cfg.MaxBytes
			seen[b.Digest] = true
			return bad
		})
	}
	return all, err
}

// nobody is the error of a blob that no node has.
func nobody(d volant.Digest, all []Holding) error {
	var silent []string
	for _, h := range all {
		if h.Err != nil {
			silent = append(silent, string(h.Node))
		}
	}
	switch {
	case len(all) == 0:
		return volant.Errorf(volant.ErrNotFound, "blob %s is not here", string(d)).WithRemedy("upload it")
	case len(silent) > 0:
		return volant.Errorf(volant.ErrUnavailable, "blob %s is not here, nor on the nodes that answer; %s did not", string(d), strings.Join(silent, ", ")).
			WithRemedy("it comes when a node that has it is back; or deploy or push the image again")
	}
	return volant.Errorf(volant.ErrNotFound, "blob %s is on none of the %d nodes", string(d), len(all)+1).WithRemedy("deploy or push the image again")
}

// gather gets the blobs of an image that are not here, its manifest last: who finds it finds the rest too.
func (s *Store) gather(ctx context.Context, d volant.Digest, bar *sharedMeter) error {
	raw, orgs, err := s.manifestOf(ctx, d)
	if err != nil {
		return err
	}
	if MediaType(raw, "").IsIndex() {
		return s.gatherIndex(ctx, d, raw, orgs, bar)
	}
	m, _, err := parseManifest(d, raw)
	if err != nil {
		return err
	}
	rest := slices.DeleteFunc(m.Blobs, func(b Blob) bool { return b.Digest == d })
	missing := s.missing(rest)
	var n int64
	for _, b := range missing {
		n += b.Size
	}
	if n > s.cfg.MaxBytes {
		return volant.Invalidf("it takes %s, and %s is the limit", size(n), size(s.cfg.MaxBytes)).
			WithRemedy("make the image smaller; or the server's operator sets image.max_size_mb higher")
	}
	if err := s.room(n); err != nil {
		return err
	}
	bar.begin(n)
	for len(missing) > 0 { // again for those that another call was getting, and did not
		all, err := s.ask(ctx, digests(missing))
		if err != nil {
			return err
		}
		if err := s.fetch(ctx, missing, all, bar); err != nil {
			return err
		}
		missing = s.missing(missing)
	}
	bar.report()
	if err := s.Put(ctx, d, bytes.NewReader(raw)); err != nil {
		return err
	}
	return s.mark(d, orgs)
}

// gatherIndex gets the image of an index that is for our platform.
func (s *Store) gatherIndex(ctx context.Context, d volant.Digest, raw []byte, orgs []string, bar *sharedMeter) error {
	var all []candidate
	read := func(d volant.Digest) ([]byte, error) {
		raw, _, err := s.manifestOf(ctx, d)
		return raw, err
	}
	if err := collect(read, raw, "", 0, &all); err != nil {
		return err
	}
	ours, err := choose(all, "")
	if err != nil {
		return err
	}
	if err := s.gather(ctx, ours, bar); err != nil {
		return err
	}
	if err := s.Put(ctx, d, bytes.NewReader(raw)); err != nil {
		return err
	}
	return s.mark(d, orgs)
}

func digests(blobs []Blob) []volant.Digest {
	out := make([]volant.Digest, len(blobs))
	for i, b := range blobs {
		out[i] = b.Digest
	}
	return out
}

// manifestOf reads a manifest, here or at another node, with the marks it has there.
func (s *Store) manifestOf(ctx context.Context, d volant.Digest) ([]byte, []string, error) {
	raw, err := s.Document(d)
	if err == nil {
		return raw, nil, nil
	}
	all, err := s.ask(ctx, []volant.Digest{d})
	if err != nil {
		return nil, nil, err
	}
	var orgs []string
	var failed error
	for _, h := range all {
		for _, b := range h.Blobs {
			if b.Digest != d {
				continue
			}
			orgs = append(orgs, b.Orgs...)
			if raw != nil {
				continue
			}
			if raw, err = s.document(ctx, h.Node, b.Blob); err != nil {
				raw, failed = nil, fmt.Errorf("manifest from node %s: %w", h.Node, err)
				s.log.Warn("manifest did not come from a node", "node", h.Node, "digest", string(d), "err", err)
			}
		}
	}
	switch {
	case raw != nil:
		return raw, orgs, nil
	case failed != nil:
		return nil, nil, &brokenOff{volant.Errorf(volant.ErrUnavailable, "%v", failed).WithRemedy("deploy or push the image again")}
	}
	return nil, nil, nobody(d, all)
}

// document is readDocument of another node, which may be silent only for so long.
func (s *Store) document(ctx context.Context, node volant.NodeID, b Blob) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Stall)
	defer cancel()
	return readDocument(func(d volant.Digest) (io.ReadCloser, int64, error) {
		r, err := s.cfg.Peers.Open(ctx, node, d, 0, b.Size)
		if err != nil {
			return nil, 0, err
		}
		return &closing{r, context.AfterFunc(ctx, func() { _ = r.Close() })}, b.Size, nil // a read that hangs ends
	}, b.Digest)
}

// closing is closed once, by its reader or by the end of its time.
type closing struct {
	io.ReadCloser
	stop func() bool
}

func (c *closing) Close() error {
	if !c.stop() {
		return nil // closed already
	}
	return c.ReadCloser.Close()
}

// markRule is how an organization's directory of marks may be named.
var markRule = regexp.MustCompile(`^(?:_[0-9a-f]{64}|[a-z0-9][a-z0-9-]{0,62})$`)

// mark notes whose a blob is, as another node says.
func (s *Store) mark(d volant.Digest, marks []string) error {
	for i, m := range marks {
		if i == maxMarks || !markRule.MatchString(m) {
			continue
		}
		if err := s.ownBy(s.path("orgs", m), d); err != nil {
			return err
		}
	}
	return nil
}
