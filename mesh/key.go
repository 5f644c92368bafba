package mesh

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/datadir"
	"github.com/volant-edge/volant/internal/atomicfile"
)

// Key is the public key of a node. Its text is base64.
type Key [32]byte

// ParseKey reads a key's text.
func ParseKey(text string) (k Key, err error) {
	err = k.UnmarshalText([]byte(text))
	return k, err
}

// IsZero says whether there is no key.
func (k Key) IsZero() bool { return k == Key{} }

func (k Key) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

func (k Key) hex() string { return hex.EncodeToString(k[:]) }

// MarshalText is the key's text; empty if there is no key.
func (k Key) MarshalText() ([]byte, error) {
	if k.IsZero() {
		return nil, nil
	}
	return []byte(k.String()), nil
}

// UnmarshalText reads what MarshalText wrote.
func (k *Key) UnmarshalText(text []byte) error {
	*k = Key{}
	if len(text) == 0 {
		return nil
	}
	b, err := base64.StdEncoding.Strict().DecodeString(string(text))
	if err != nil || len(b) != len(k) {
		return volant.Invalidf("WireGuard key: it is 32 bytes in base64")
	}
	copy(k[:], b)
	return nil
}

// Private is a private key. It is not printed.
type Private [32]byte

// NewPrivate makes a key.
func NewPrivate() (p Private, err error) {
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return p, err
	}
	copy(p[:], k.Bytes())
	p[0] &= 248 // as every holder of the key would, so that two spellings of one key do not differ
	p[31] = p[31]&127 | 64
	return p, nil
}

// Public is the key that others know.
func (p Private) Public() (k Key) {
	priv, err := ecdh.X25519().NewPrivateKey(p[:])
	if err != nil {
		panic("mesh: 32 bytes are no X25519 key") // they always are
	}
	copy(k[:], priv.PublicKey().Bytes())
	return k
}

// IsZero says whether there is no key.
func (p Private) IsZero() bool { return p == Private{} }

func (p Private) String() string { return "(private key)" }

// GoString hides the key from %#v.
func (p Private) GoString() string { return p.String() }

func (p Private) hex() string { return hex.EncodeToString(p[:]) }

// MarshalText is for the files and the socket that are root's alone.
func (p Private) MarshalText() ([]byte, error) { return Key(p).MarshalText() }

// UnmarshalText reads what MarshalText wrote.
func (p *Private) UnmarshalText(text []byte) error { return (*Key)(p).UnmarshalText(text) }

// Keys are a node's private keys on disk: the one in use, and while it is being replaced the next one.
type Keys struct {
	dir  string
	Use  Private
	Next Private // zero: no rotation goes on
}

const (
	keyFile  = "key"
	nextFile = "next-key"
)

// OpenKeys reads the keys in a node's data directory; it makes the first one.
func OpenKeys(d *datadir.Dir) (*Keys, error) {
	dir, err := d.Sub("mesh")
	if err != nil {
		return nil, err
	}
	k := &Keys{dir: dir}
	if k.Use, err = readKey(dir + "/" + keyFile); errors.Is(err, os.ErrNotExist) {
		if k.Use, err = NewPrivate(); err == nil {
			err = k.write(keyFile, k.Use)
		}
	}
	if err != nil {
		return nil, err
	}
	if k.Next, err = readKey(dir + "/" + nextFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return k, nil
}

func readKey(path string) (p Private, err error) {
	b, err := atomicfile.ReadChecked(path, 1<<10)
	if err != nil {
		return p, err
	}
	if err := p.UnmarshalText(b); err != nil || p.IsZero() {
		return p, fmt.Errorf("%s: %w", path, atomicfile.ErrDamaged)
	}
	return p, nil
}

func (k *Keys) write(name string, p Private) error {
	b, err := p.MarshalText()
	if err != nil {
		return err
	}
	return atomicfile.WriteChecked(k.dir+"/"+name, b, 0o600)
}

// Made is when the key in use was made.
func (k *Keys) Made() (time.Time, error) {
	fi, err := os.Stat(k.dir + "/" + keyFile)
	if err != nil {
		return time.Time{}, err
	}
	return fi.ModTime(), nil
}

// Renew makes the next key if there is none.
func (k *Keys) Renew() error {
	if !k.Next.IsZero() {
		return nil
	}
	p, err := NewPrivate()
	if err != nil {
		return err
	}
	if err := k.write(nextFile, p); err != nil {
		return err
	}
	k.Next = p
	return nil
}

// Switch puts the next key into use, on disk first: after a crash the node goes on with the key that others may
// know it by already.
func (k *Keys) Switch() error {
	if k.Next.IsZero() {
		return volant.Errorf(volant.ErrPrecondition, "there is no next key to switch to")
	}
	if err := os.Rename(k.dir+"/"+nextFile, k.dir+"/"+keyFile); err != nil {
		return fmt.Errorf("switch keys: %w", err)
	}
	if err := atomicfile.SyncDir(k.dir); err != nil {
		return fmt.Errorf("switch keys: %w", err)
	}
	k.Use, k.Next = k.Next, Private{}
	return nil
}
