package cert

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Issued is an authority with a memory: it issues a certificate for a host name when one is asked for, and
// another when two thirds of its life are over. Certificates are kept on disk too, so that a client which
// has accepted one sees the same after a restart; a lost file costs no more than another certificate.
type Issued struct {
	*Authority
	dir string

	mu    sync.Mutex // guards pairs
	pairs map[string]*Pair
}

// NewIssued returns an Issued that keeps its certificates in dir, which it makes.
func NewIssued(a *Authority, dir string) (*Issued, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("issued certificates: %w", err)
	}
	return &Issued{Authority: a, dir: dir, pairs: map[string]*Pair{}}, nil
}

// Pair returns the certificate for a host name.
func (i *Issued) Pair(hostname string, now time.Time) (*Pair, error) {
	hostname, err := Hostname(hostname)
	if err != nil {
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	p := i.pairs[hostname]
	if p == nil {
		p = i.kept(hostname)
	}
	if p == nil || p.Stage(now) != Valid {
		if p, err = i.Issue([]string{hostname}, now); err != nil {
			return nil, err
		}
		i.keep(hostname, p)
	}
	i.pairs[hostname] = p
	return p, nil
}

// Retain forgets the certificates of host names that keep does not name.
func (i *Issued) Retain(keep func(hostname string) bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for name := range i.pairs {
		if !keep(name) {
			delete(i.pairs, name)
		}
	}
	entries, err := os.ReadDir(i.dir)
	if err != nil {
		return // files that stay cost nothing but their place
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".pem")
		if strings.HasPrefix(name, "_.") {
			name = "*" + name[1:]
		}
		if !ok || !keep(name) {
			_ = os.Remove(filepath.Join(i.dir, e.Name())) // likewise
		}
	}
}

func (i *Issued) file(hostname string) string {
	return filepath.Join(i.dir, strings.Replace(hostname, "*", "_", 1)+".pem")
}

// kept reads a certificate of this authority off the disk; nil if there is none that is of use.
func (i *Issued) kept(hostname string) *Pair {
	b, err := readSmall(i.file(hostname))
	if err != nil {
		return nil
	}
	p, err := Parse(b, b)
	if err != nil || p.Covers(hostname) != nil || p.Leaf.CheckSignatureFrom(i.cert) != nil {
		return nil
	}
	return p
}

// keep writes a certificate and its key down, not durably: see Issued.
func (i *Issued) keep(hostname string, p *Pair) {
	path := i.file(hostname)
	tmp := path + ".new"
	if os.WriteFile(tmp, append(append([]byte(nil), p.Chain...), p.Key...), 0o600) == nil {
		_ = os.Rename(tmp, path) // else the next start issues another
	}
}
