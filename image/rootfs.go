package image

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/image/erofs"
)

// format is part of a root disk's name. It changes when the converter's output does: a suspended
// guest has read the old file's blocks, so another one must never take its place.
const format = "1"

// Rootfs is an image's root disk.
type Rootfs struct {
	Digest volant.Digest `json:"digest"` // of the manifest
	Path   string        `json:"-"`
	Type   string        `json:"type"` // of file system: "erofs"
	Bytes  int64         `json:"bytes"`
	Config RunConfig     `json:"config"`
	Notes  []string      `json:"notes,omitempty"` // what was left out of it, for people
}

// Rootfs returns the image's root disk, and makes it first if this was not done yet.
func (s *Store) Rootfs(ctx context.Context, d volant.Digest) (Rootfs, error) {
	return s.Convert(ctx, d, nil)
}

// Convert is Rootfs with progress. Several calls for one image share one conversion; it ends early
// only when all of them have ended.
func (s *Store) Convert(ctx context.Context, d volant.Digest, progress func(Progress)) (Rootfs, error) {
	if !d.Valid() {
		return Rootfs{}, volant.Invalidf("image: %s", d)
	}
	if r, err := s.converted(d); err == nil {
		s.touch(r.Path)
		return r, nil
	}
	f := s.board(ctx, d)
	hear := f.listen(progress)
	defer hear()
	select {
	case <-f.done:
	case <-ctx.Done():
		s.leave(d, f)
		return Rootfs{}, fmt.Errorf("image %s: convert: %w", string(d), context.Cause(ctx))
	}
	if f.err != nil {
		return Rootfs{}, fmt.Errorf("image %s: convert: %w", string(d), f.err)
	}
	return f.rootfs, nil
}

// touch notes that a root disk was asked for: GC takes those first that were not for long.
func (s *Store) touch(path string) {
	now := time.Now()
	if err := os.Chtimes(path, now, now); err != nil {
		s.log.Warn("root disk not touched", "file", path, "err", err)
	}
}

// flight is a conversion that one or more callers wait for.
type flight struct {
	cancel  context.CancelFunc
	waiters int // guarded by Store.mu

	mu        sync.Mutex // guards listeners
	listeners map[int]func(Progress)
	next      int

	done   chan struct{} // closed when the fields below are set
	rootfs Rootfs
	err    error
}

// board joins the conversion of d or starts it.
func (s *Store) board(ctx context.Context, d volant.Digest) *flight {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.flights[d]
	if f == nil {
		f = &flight{done: make(chan struct{}), listeners: make(map[int]func(Progress))}
		ctx, f.cancel = context.WithCancel(context.WithoutCancel(ctx))
		s.flights[d] = f
		go s.fly(ctx, d, f)
	}
	f.waiters++
	return f
}

func (s *Store) fly(ctx context.Context, d volant.Digest, f *flight) {
	defer f.cancel()
	began := time.Now()
	// A flight before may have landed between the caller's look and its boarding.
	f.rootfs, f.err = s.converted(d)
	if f.err != nil {
		f.rootfs, f.err = s.convert(ctx, d, f.tell)
		if f.err == nil {
			s.log.Info("image converted", "digest", string(d), "bytes", f.rootfs.Bytes, "took", time.Since(began), "notes", f.rootfs.Notes)
		}
	}
	s.mu.Lock()
	if s.flights[d] == f {
		delete(s.flights, d)
	}
	s.mu.Unlock()
	close(f.done)
}

// leave takes a caller off; the last one ends the conversion and waits until its files are gone.
func (s *Store) leave(d volant.Digest, f *flight) {
	s.mu.Lock()
	f.waiters--
	last := f.waiters == 0
	if last && s.flights[d] == f {
		delete(s.flights, d)
	}
	s.mu.Unlock()
	if last {
		f.cancel()
		<-f.done
	}
}

func (f *flight) listen(fn func(Progress)) (stop func()) {
	if fn == nil {
		return func() {}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	id := f.next
	f.next++
	f.listeners[id] = fn
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.listeners, id)
	}
}

func (f *flight) tell(p Progress) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, fn := range f.listeners {
		fn(p)
	}
}

func (s *Store) rootfsPath(d volant.Digest) string {
	return s.path("rootfs", d.Hex()+"-"+format+".erofs")
}

// converted reads the record of a root disk that is there.
func (s *Store) converted(d volant.Digest) (Rootfs, error) {
	r := Rootfs{Path: s.rootfsPath(d)}
	raw, err := os.ReadFile(r.Path + ".json")
	if err != nil {
		return Rootfs{}, err
	}
	if err := json.Unmarshal(raw, &r); err != nil {
		return Rootfs{}, err
	}
	st, err := os.Stat(r.Path)
	if err != nil {
		return Rootfs{}, err
	}
	if st.Size() != r.Bytes || r.Digest != d {
		return Rootfs{}, errors.New("the root disk is not what its record says")
	}
	return r, nil
}

// convert makes the root disk of an image.
func (s *Store) convert(ctx context.Context, d volant.Digest, progress func(Progress)) (Rootfs, error) {
	if s.cfg.Peers != nil || s.cfg.Origin != nil {
		if err := s.Complete(ctx, d, progress); err != nil {
			return Rootfs{}, err
		}
	}
	m, err := readManifest(s.Blob, d)
	if err != nil {
		return Rootfs{}, err
	}
	if err := s.room(m.Size()); err != nil { // what the layers unpack to is known at their end only
		return Rootfs{}, err
	}
	f, remove, err := s.temp("rootfs-")
	if err != nil {
		return Rootfs{}, err
	}
	defer remove()
	r := Rootfs{Digest: d, Path: s.rootfsPath(d), Type: "erofs", Config: m.Config}
	merge := newMerger(erofs.NewWriter(f), s.cfg)
	bar := &meter{Progress: Progress{Phase: "convert"}, tell: progress}
	for _, l := range m.Layers {
		bar.Total += l.Size
	}
	for i, l := range m.Layers {
		bar.Blob = l.Digest
		if err := s.layer(ctx, merge, l, m.diffIDs[i], bar); err != nil {
			return Rootfs{}, s.diskFull(err)
		}
		bar.report()
	}
	if r.Bytes, r.Notes, err = merge.finish(label(d)); err != nil {
		return Rootfs{}, s.diskFull(fmt.Errorf("write the root disk: %w", err))
	}
	if err := publish(f, r.Path, 0o444); err != nil {
		return Rootfs{}, s.diskFull(fmt.Errorf("write the root disk: %w", err))
	}
	if err := s.record(r); err != nil {
		return Rootfs{}, s.diskFull(errors.Join(fmt.Errorf("write the root disk's record: %w", err), os.Remove(r.Path)))
	}
	return r, nil
}

// label makes a UUID out of a digest, as version 8 of RFC 9562 allows.
func label(d volant.Digest) (u [16]byte) {
	// A valid digest's hex digits always decode.
	_, _ = hex.Decode(u[:], []byte(d.Hex()[:32]))
	u[6] = u[6]&0x0f | 0x80
	u[8] = u[8]&0x3f | 0x80
	return u
}

func (s *Store) record(r Rootfs) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	f, remove, err := s.temp("record-")
	if err != nil {
		return err
	}
	defer remove()
	if _, err := f.Write(raw); err != nil {
		return err
	}
	return publish(f, r.Path+".json", 0o444)
}
