package image_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/image"
	"github.com/volant-edge/volant/image/imagetest"
	"github.com/volant-edge/volant/internal/ociarchive"
)

// node is another node: its store, and how it misbehaves.
type node struct {
	id    volant.NodeID
	store *image.Store

	mu      sync.Mutex
	dead    bool          // does not answer
	spoil   bool          // sends other bytes
	dies    int64         // bytes after which it is dead, if not 0
	hangs   bool          // opens and sends nothing
	pace    time.Duration // for each 32 KiB
	streams int           // that run
	most    int           // that ran at a time
	sent    int64
}

// cluster are other nodes, nearest first.
type cluster []*node

func (c cluster) Have(_ context.Context, ds []volant.Digest) ([]image.Holding, error) {
	var out []image.Holding
	for _, n := range c {
		h := image.Holding{Node: n.id}
		if n.isDead() {
			h.Err = errors.New("dead")
		} else {
			h.Blobs = n.store.Held(ds, "")
		}
		out = append(out, h)
	}
	return out, nil
}

func (c cluster) Open(_ context.Context, id volant.NodeID, d volant.Digest, off, n int64) (io.ReadCloser, error) {
	for _, x := range c {
		if x.id != id {
			continue
		}
		if x.isDead() {
			return nil, errors.New("connection refused")
		}
		f, _, err := x.store.Blob(d)
		if err != nil {
			return nil, err
		}
		x.mu.Lock()
		defer x.mu.Unlock()
		x.streams++
		x.most = max(x.most, x.streams)
		return &sending{x, f, io.NewSectionReader(f.(io.ReaderAt), off, n), make(chan struct{}), sync.Once{}}, nil
	}
	return nil, errors.New("no such node")
}

func (n *node) isDead() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dead || n.dies > 0 && n.sent >= n.dies
}

func (n *node) total() int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sent
}

type sending struct {
	n    *node
	file io.Closer
	r    io.Reader
	gone chan struct{}
	once sync.Once
}

func (s *sending) Read(b []byte) (int, error) {
	if s.n.hangs {
		<-s.gone
		return 0, errors.New("closed")
	}
	if s.n.isDead() {
		return 0, errors.New("connection reset")
	}
	time.Sleep(s.n.pace)
	n, err := s.r.Read(b[:min(len(b), 32<<10)])
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	s.n.sent += int64(n)
	if s.n.spoil && n > 0 {
		b[n-1] ^= 1
	}
	return n, err
}

func (s *sending) Close() error {
	s.once.Do(func() {
		close(s.gone)
		s.n.mu.Lock()
		s.n.streams--
		s.n.mu.Unlock()
	})
	return s.file.Close()
}

// big is an image with a layer of n MiB, and a small one.
func big(t *testing.T, n int) (file string, d volant.Digest) {
	t.Helper()
	body := make([]byte, n<<20)
	r := rand.NewChaCha8([32]byte{1})
	if _, err := r.Read(body); err != nil {
		t.Fatal(err)
	}
	return imagetest.Archive(t, ociarchive.Image{Layers: []ociarchive.Layer{
		plain(t, imagetest.File("big", string(body))), plain(t, imagetest.File("small", "small")),
	}})
}

// peers are n nodes which all have the image, of the organization acme.
func peers(t *testing.T, file string, n int) cluster {
	t.Helper()
	var c cluster
	for i := range n {
		x := &node{id: volant.NodeID(fmt.Sprintf("%08d", i+1))}
		x.store, _ = open(t, image.Config{})
		if file != "" {
			d, err := x.store.Import(t.Context(), "oci-archive:"+file, nil)
			if err == nil {
				err = x.store.Grant("acme", d)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		c = append(c, x)
	}
	return c
}

// want checks that the store has all of the image, and makes its root disk.
func want(t *testing.T, s *image.Store, d volant.Digest) {
	t.Helper()
	m, err := s.Manifest(d)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range m.Blobs {
		r, _, err := s.Blob(b.Digest)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := io.ReadAll(r)
		if err != nil || digest(raw) != b.Digest {
			t.Errorf("blob %s is not what it is called (%v)", string(b.Digest), err)
		}
		_ = r.Close()
		if !s.Owns("acme", b.Digest) || s.Owns("evil", b.Digest) {
			t.Errorf("blob %s is not acme's alone", string(b.Digest))
		}
	}
	if _, err := s.Rootfs(t.Context(), d); err != nil {
		t.Error(err)
	}
}

func left(t *testing.T, dir string) (out []string) {
	t.Helper()
	for _, d := range []string{"parts", "tmp"} {
		all, err := os.ReadDir(filepath.Join(dir, d))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range all {
			out = append(out, d+"/"+e.Name())
		}
	}
	return out
}

func TestImageComesFromSeveralNodesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file, d := big(t, 12)
		c := peers(t, file, 3)
		for _, n := range c {
			n.pace = time.Millisecond
		}
		s, dir := open(t, image.Config{Peers: c, Piece: 256 << 10})
		var told image.Progress
		if _, err := s.Convert(t.Context(), d, func(p image.Progress) {
			if p.Phase == "fetch" {
				told = p
			}
		}); err != nil {
			t.Fatal(err)
		}
		want(t, s, d)
		if c[0].total() < 4<<20 || c[1].total() < 2<<20 || c[0].most < 3 || c[0].most > 8 {
			t.Errorf("nodes sent %d, %d and %d bytes, the first in %d streams", c[0].total(), c[1].total(), c[2].total(), c[0].most)
		}
		if told.Done != told.Total || told.Total < 12<<20 {
			t.Errorf("told %+v", told)
		}
		if l := left(t, dir); len(l) > 0 {
			t.Errorf("left: %v", l)
		}
		for _, n := range c {
			if n.streams > 0 {
				t.Errorf("node %s has %d open streams", n.id, n.streams)
			}
		}
	})
}

func TestOtherNodeHelps(t *testing.T) {
	for name, bad := range map[string]func(near, far *node){
		"damaged":      func(near, _ *node) { near.spoil = true },
		"dead":         func(near, _ *node) { near.dead = true },
		"dies":         func(near, _ *node) { near.dies = 3 << 20 },
		"hangs":        func(near, _ *node) { near.hangs = true },
		"slow":         func(near, _ *node) { near.pace = 2 * time.Second },
		"both damaged": func(near, far *node) { near.spoil, far.spoil = true, true },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				file, d := big(t, 8)
				c := peers(t, file, 3)
				for _, n := range c {
					n.pace = 100 * time.Microsecond
				}
				bad(c[0], c[1])
				s, dir := open(t, image.Config{Peers: c, Piece: 256 << 10})
				began := time.Now()
				if _, err := s.Rootfs(t.Context(), d); err != nil {
					t.Fatal(err)
				}
				want(t, s, d)
				if took := time.Since(began); took > time.Minute {
					t.Errorf("it took %s", took)
				}
				if l := left(t, dir); len(l) > 0 {
					t.Errorf("left: %v", l)
				}
			})
		})
	}
}

func TestDamagedNodeAloneGivesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file, d := big(t, 1)
		c := peers(t, file, 1)
		c[0].spoil = true
		s, dir := open(t, image.Config{Peers: c, Piece: 256 << 10})
		_, err := s.Rootfs(t.Context(), d)
		var e *volant.Error
		if !errors.Is(err, volant.ErrUnavailable) || !errors.As(err, &e) || e.Remedy == "" {
			t.Errorf("got %v", err)
		}
		if all, _ := os.ReadDir(filepath.Join(dir, "blobs/sha256")); len(all) > 0 {
			t.Errorf("it has %v", all)
		}
	})
}

func TestNoNodeHasIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, d := big(t, 1)
		c := peers(t, "", 3)
		s, _ := open(t, image.Config{Peers: c})
		_, err := s.Rootfs(t.Context(), d)
		if !errors.Is(err, volant.ErrNotFound) || !strings.Contains(err.Error(), "on none of the 4 nodes; deploy or push the image again") {
			t.Errorf("got %v", err)
		}
		c[1].dead = true
		_, err = s.Rootfs(t.Context(), d)
		if !errors.Is(err, volant.ErrUnavailable) || !strings.Contains(err.Error(), "00000002 did not") {
			t.Errorf("got %v", err)
		}
	})
}

func TestRegistryIsTheLastResort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file, d := big(t, 1)
		asked := 0
		cfg := image.Config{Peers: peers(t, file, 1)}
		var s *image.Store
		cfg.Origin = func(ctx context.Context, d volant.Digest, _ func(image.Progress)) error {
			asked++
			_, err := s.Import(ctx, "oci-archive:"+file, nil)
			return err
		}
		s, _ = open(t, cfg)
		if _, err := s.Rootfs(t.Context(), d); err != nil || asked != 0 {
			t.Errorf("a node has it: %v, and the registry was asked %d times", err, asked)
		}
		cfg.Peers = peers(t, "", 1)
		s, _ = open(t, cfg)
		if _, err := s.Rootfs(t.Context(), d); err != nil || asked != 1 {
			t.Errorf("no node has it: %v, and the registry was asked %d times", err, asked)
		}
		cfg.Origin = func(context.Context, volant.Digest, func(image.Progress)) error { return errors.ErrUnsupported }
		s, _ = open(t, cfg)
		if _, err := s.Rootfs(t.Context(), d); !errors.Is(err, volant.ErrNotFound) || errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("its registry is not known: %v", err)
		}
	})
}

// A transfer that ends, by its caller or with the process, goes on where it was.
func TestTransferGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file, d := big(t, 8)
		c := peers(t, file, 1)
		c[0].pace = time.Millisecond
		cfg := image.Config{Peers: c, Piece: 256 << 10}
		s, dir := open(t, cfg)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		defer cancel()
		if _, err := s.Rootfs(ctx, d); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
		synctest.Wait()
		before := c[0].total()
		if before < 2<<20 || before > 7<<20 {
			t.Fatalf("%d bytes came before the end", before)
		}
		s, err := image.Open(dir, cfg)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Rootfs(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		want(t, s, d)
		if n := c[0].total(); n > 8<<20+8*256<<10+64<<10 {
			t.Errorf("%d bytes were sent for 8 MiB", n)
		}
		if l := left(t, dir); len(l) > 0 {
			t.Errorf("left: %v", l)
		}
	})
}

// What is on disk may be wrong after a power failure.
func TestDamagedPartIsFetchedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file, d := big(t, 2)
		c := peers(t, file, 1)
		s, dir := open(t, image.Config{Peers: c, Piece: 256 << 10})
		m, err := c[0].store.Manifest(d)
		if err != nil {
			t.Fatal(err)
		}
		l := m.Layers[0]
		pieces := int((l.Size + 256<<10 - 1) / (256 << 10))
		part := filepath.Join(dir, "parts", l.Digest.Hex())
		if err := errors.Join(os.WriteFile(part, make([]byte, l.Size), 0o600), os.WriteFile(part+".came", bytes.Repeat([]byte{1}, pieces), 0o600)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Rootfs(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		want(t, s, d)
	})
}

func TestImagesThatShareLayersFetchThemOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		body := make([]byte, 4<<20)
		base := plain(t, imagetest.File("base", string(body)))
		c := peers(t, "", 1)
		c[0].pace = time.Millisecond
		var ds []volant.Digest
		for i := range 3 {
			ds = append(ds, load(t, c[0].store, base, plain(t, imagetest.File("own", fmt.Sprint(i)))))
		}
		s, _ := open(t, image.Config{Peers: c, Piece: 256 << 10})
		var wg sync.WaitGroup
		for _, d := range ds {
			wg.Go(func() {
				if _, err := s.Rootfs(t.Context(), d); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := c[0].total(); n > 4<<20+128<<10 {
			t.Errorf("%d bytes were sent for a base of 4 MiB", n)
		}
	})
}

func TestBringOneBlob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := peers(t, "", 2)
		body := []byte("a blob of its own")
		for _, n := range c {
			if err := n.store.PutFor(t.Context(), "acme", digest(body), bytes.NewReader(body)); err != nil {
				t.Fatal(err)
			}
		}
		c[0].spoil = true
		s, _ := open(t, image.Config{Peers: c})
		if err := s.Bring(t.Context(), digest(body)); err != nil || !s.Owns("acme", digest(body)) {
			t.Errorf("Bring() = %v, owned: %v", err, s.Owns("acme", digest(body)))
		}
		if err := s.Bring(t.Context(), digest([]byte("other"))); !errors.Is(err, volant.ErrNotFound) {
			t.Errorf("a blob that nobody has: %v", err)
		}
	})
}

func TestLimitsHoldForWhatOthersHave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file, d := big(t, 3)
		s, _ := open(t, image.Config{Peers: peers(t, file, 1), MaxBytes: 2 << 20})
		if _, err := s.Rootfs(t.Context(), d); !errors.Is(err, volant.ErrInvalid) {
			t.Errorf("got %v", err)
		}
	})
}

func TestPartsThatNobodyGoesOnWithGo(t *testing.T) {
	s, dir := open(t, image.Config{})
	part := filepath.Join(dir, "parts", strings.Repeat("a", 64))
	if err := os.WriteFile(part, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	collect := func() {
		t.Helper()
		if _, err := s.GC(t.Context(), func(volant.Digest) bool { return false }); err != nil {
			t.Fatal(err)
		}
	}
	collect()
	if len(left(t, dir)) != 1 {
		t.Error("a young part is gone")
	}
	grow(t, dir)
	collect()
	if l := left(t, dir); len(l) != 0 {
		t.Errorf("left: %v", l)
	}
}
