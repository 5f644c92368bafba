package image

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/volant-edge/volant"
)

// partial is a blob that comes in pieces, in any order. What came is on disk, and a later process goes on with
// it: beside the content is a file with a byte for each piece, 1 when it came. That may be wrong after a
// power failure; the digest of the whole decides.
type partial struct {
	blob    Blob
	piece   int64
	content *os.File
	marks   *os.File

	mu     sync.Mutex // guards what follows
	sum    hash.Hash
	hashed int // pieces that are in sum
}

// openPartial opens what came of a blob, and says which pieces did.
func (s *Store) openPartial(b Blob) (*partial, []bool, error) {
	path := s.path("parts", b.Digest.Hex())
	content, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, err
	}
	marks, err := os.OpenFile(path+".came", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, errors.Join(err, content.Close())
	}
	p := &partial{blob: b, piece: s.cfg.Piece, content: content, marks: marks, sum: sha256.New()}
	here, err := p.load()
	if err != nil {
		return nil, nil, errors.Join(err, p.close())
	}
	return p, here, nil
}

func (p *partial) pieces() int { return int((p.blob.Size + p.piece - 1) / p.piece) }

// span is where a piece lies.
func (p *partial) span(i int) (off, n int64) {
	off = int64(i) * p.piece
	return off, min(p.piece, p.blob.Size-off)
}

func (p *partial) load() ([]bool, error) {
	here := make([]bool, p.pieces())
	st, err := p.content.Stat()
	if err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(io.LimitReader(p.marks, int64(len(here))+1))
	if err != nil {
		return nil, err
	}
	if st.Size() != p.blob.Size || len(raw) != len(here) {
		return here, p.reset()
	}
	for i, b := range raw {
		here[i] = b == 1
	}
	return here, nil
}

// reset forgets what came.
func (p *partial) reset() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sum.Reset()
	p.hashed = 0
	return errors.Join(p.marks.Truncate(0), p.marks.Truncate(int64(p.pieces())), p.content.Truncate(0), p.content.Truncate(p.blob.Size))
}

// came notes that a piece was written.
func (p *partial) came(i int) error {
	_, err := p.marks.WriteAt([]byte{1}, int64(i))
	return err
}

// add hashes what is whole from the start, up to the piece end. A call while another one hashes does nothing.
func (p *partial) add(end int) error {
	if !p.mu.TryLock() {
		return nil
	}
	defer p.mu.Unlock()
	return p.addLocked(end)
}

func (p *partial) addLocked(end int) error {
	if end <= p.hashed {
		return nil
	}
	from, _ := p.span(p.hashed)
	last, n := p.span(end - 1)
	if _, err := io.Copy(p.sum, io.NewSectionReader(p.content, from, last+n-from)); err != nil {
		return err
	}
	p.hashed = end
	return nil
}

// digest is what the content is. Afresh does not trust what was hashed while it came: after a reset, a late add may
// have hashed what was there before.
func (p *partial) digest(afresh bool) (volant.Digest, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if afresh {
		p.sum.Reset()
		p.hashed = 0
	}
	if err := p.addLocked(p.pieces()); err != nil {
		return "", err
	}
	return sum(p.sum), nil
}

// publish makes it a blob of the store.
func (p *partial) publish(s *Store) error {
	if err := publish(p.content, s.blobPath(p.blob.Digest), 0o400); err != nil {
		return err
	}
	return errors.Join(p.marks.Close(), os.Remove(p.marks.Name()))
}

// close keeps what came for a later call.
func (p *partial) close() error { return errors.Join(p.content.Close(), p.marks.Close()) }

// sweepParts removes what came of blobs that nobody gets, and nobody went on with for the grace time.
func (s *Store) sweepParts() error {
	entries, err := os.ReadDir(s.path("parts"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		hex, _, _ := strings.Cut(e.Name(), ".")
		release, ok := s.claim(volant.Digest("sha256:" + hex))
		if !ok {
			continue // it comes just now
		}
		info, err := e.Info()
		if err == nil && time.Since(info.ModTime()) >= s.cfg.Grace {
			err = os.Remove(s.path("parts", e.Name()))
		}
		release()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("parts of blobs: %w", err)
		}
	}
	return nil
}

// claim makes the caller the one who gets a blob from other nodes. If somebody does already it is not.
func (s *Store) claim(d volant.Digest) (release func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fetching[d] != nil {
		return nil, false
	}
	done := make(chan struct{})
	s.fetching[d] = done
	return func() {
		s.mu.Lock()
		delete(s.fetching, d)
		s.mu.Unlock()
		close(done)
	}, true
}
