// Package secret seals what a server keeps for its users: values of secrets and private keys.
//
//	plain + where it belongs ─► Seal ─► a record of intent ─► Open ─► plain
//
// # Invariants
//
//   - What is stored and backed up with the records is of no use without the key file.
//   - A sealed value opens only for the place it was sealed for, so that a value copied into another record
//     does not open there. The place of a secret is "APPID/NAME", of a certificate's key "cert/HOSTNAME".
//   - The key file is made once, or given by the cluster when the server joins, and never replaced. It is readable by its owner alone, or nothing opens.
//   - Each sealed value begins with a version byte, so that another algorithm can follow this one.
//
// # Sources
//
// XChaCha20-Poly1305: draft-irtf-cfrg-xchacha-03. Its nonces of 24 bytes may be random. HKDF: RFC 5869.
//
// # Not here
//
// Who may see a value: package control. How values come into a guest: package host.
package secret

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/crypto/chacha20poly1305"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/internal/atomicfile"
)

// KeyFile is the name of the key's file in its directory.
const KeyFile = "secret.key"

// MaxPlain bounds what one call seals.
const MaxPlain = 1 << 20

// version1 heads what is sealed with XChaCha20-Poly1305: version, nonce, ciphertext and tag.
const version1 = 1

const overhead = 1 + chacha20poly1305.NonceSizeX + chacha20poly1305.Overhead

// Box seals and opens. It may be used by many goroutines at once.
type Box struct {
	aead   cipher.AEAD
	key    []byte
	digest []byte // key of digests
}

// Open reads the key of dir, and makes it at the first start.
func Open(dir string) (*Box, error) {
	path := filepath.Join(dir, KeyFile)
	key, err := readKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		key = make([]byte, chacha20poly1305.KeySize)
		rand.Read(key) // never fails since Go 1.24
		err = atomicfile.WriteChecked(path, key, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("key of secrets: %w", err)
	}
	return New(key)
}

// New returns a box of the key, which has 32 bytes.
func New(key []byte) (*Box, error) {
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, volant.Invalidf("the key of secrets has %d bytes and needs %d", len(key), chacha20poly1305.KeySize)
	}
	digest, err := hkdf.Key(sha256.New, key, nil, "volant digests of secrets", sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("key of digests: %w", err)
	}
	return &Box{aead: aead, key: slices.Clone(key), digest: digest}, nil
}

// Install writes the key that another server of the cluster gave. It replaces no other key.
func Install(dir string, key []byte) error {
	if _, err := New(key); err != nil {
		return err
	}
	path := filepath.Join(dir, KeyFile)
	old, err := readKey(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := atomicfile.WriteChecked(path, key, 0o600); err != nil {
			return fmt.Errorf("key of secrets: %w", err)
		}
		return nil
	case err != nil:
		return fmt.Errorf("key of secrets: %w", err)
	case !hmac.Equal(old, key):
		return volant.Errorf(volant.ErrPrecondition, "%s holds the key of another cluster", path).
			WithRemedy("use an empty data directory")
	}
	return nil
}

// Key is the key itself, for another server of the cluster.
func (b *Box) Key() []byte { return slices.Clone(b.key) }

// Derive returns 32 bytes that only servers with this key know, for one purpose.
func (b *Box) Derive(purpose string) ([]byte, error) {
	out, err := hkdf.Key(sha256.New, b.key, nil, "volant "+purpose, sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("derive the key for %s: %w", purpose, err)
	}
	return out, nil
}

func readKey(path string) ([]byte, error) {
	st, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, volant.Errorf(volant.ErrPrecondition, "%s is no regular file", path).
			WithRemedy("put the key file back from a backup; without it no stored secret can be read")
	}
	if perm := st.Mode().Perm(); perm&0o077 != 0 {
		return nil, volant.Errorf(volant.ErrPrecondition, "%s has mode %#o, so others may have read it", path, perm).
			WithRemedy("run `chmod 600 %s`, and set anew each secret that others may have seen", path)
	}
	key, err := atomicfile.ReadChecked(path, 1024)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s vanished while it was read", path) // and must not be made anew
	}
	if err == nil && len(key) != chacha20poly1305.KeySize {
		err = fmt.Errorf("%d bytes in place of %d", len(key), chacha20poly1305.KeySize)
	}
	if err != nil {
		return nil, volant.Errorf(volant.ErrPrecondition, "%s cannot be read: %v", path, err).
			WithRemedy("put the file back from a backup; without it no stored secret can be read. " +
				"To start over, move it away and set every secret and certificate again")
	}
	return key, nil
}

// Seal returns plain encrypted, for the place aad alone.
func (b *Box) Seal(aad string, plain []byte) ([]byte, error) {
	if len(plain) > MaxPlain {
		return nil, volant.Invalidf("%d bytes to seal: use at most %d", len(plain), MaxPlain)
	}
	out := make([]byte, 1+chacha20poly1305.NonceSizeX, overhead+len(plain))
	out[0] = version1
	nonce := out[1:]
	rand.Read(nonce) // never fails since Go 1.24
	return b.aead.Seal(out, nonce, plain, bound(aad)), nil
}

// Open returns what Seal was given for the same place.
func (b *Box) Open(aad string, sealed []byte) ([]byte, error) {
	switch {
	case len(sealed) < overhead || len(sealed) > overhead+MaxPlain:
		return nil, volant.Errorf(volant.ErrPrecondition, "the sealed value of %s has a wrong length", aad).WithRemedy("set it again")
	case sealed[0] != version1:
		return nil, volant.Errorf(volant.ErrPrecondition, "the sealed value of %s has version %d, which this server does not know", aad, sealed[0]).
			WithRemedy("run a newer Volant, or set it again")
	}
	nonce, text := sealed[1:1+chacha20poly1305.NonceSizeX], sealed[1+chacha20poly1305.NonceSizeX:]
	plain, err := b.aead.Open(nil, nonce, text, bound(aad))
	if err != nil {
		return nil, volant.Errorf(volant.ErrPrecondition, "the sealed value of %s does not open with this server's key", aad).
			WithRemedy("the key file %s is another one than when it was set: put that back from a backup, or set it again", KeyFile)
	}
	return plain, nil
}

// Digest names a value without telling it: the same value in the same place has the same digest, and who
// has not the key cannot try out values.
func (b *Box) Digest(aad string, plain []byte) string {
	mac := hmac.New(sha256.New, b.digest)
	mac.Write(fmt.Appendf(nil, "%d:%s", len(aad), aad))
	mac.Write(plain)
	return hex.EncodeToString(mac.Sum(nil)[:8])
}

// bound is what is authenticated beside a value: the version, so that none can be passed off as
// another, and the place.
func bound(aad string) []byte { return append([]byte{version1}, aad...) }
