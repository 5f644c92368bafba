package node

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"os"

	"github.com/volant-edge/volant/internal/atomicfile"
)

// meshKey is the public key of this server in the mesh, which is made at the first start.
func (s *server) meshKey() (string, error) {
	dir, err := s.dir.Sub("mesh")
	if err != nil {
		return "", err
	}
	path := dir + "/key"
	text, err := atomicfile.ReadChecked(path, 1<<10)
	if errors.Is(err, os.ErrNotExist) {
		k, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			return "", err
		}
		raw := k.Bytes()
		raw[0] &= 248
		raw[31] = raw[31]&127 | 64
		text = []byte(base64.StdEncoding.EncodeToString(raw))
		if err := atomicfile.WriteChecked(path, text, 0o600); err != nil {
			return "", err
		}
	} else if err != nil {
		return "", err
	}
	raw, err := base64.StdEncoding.DecodeString(string(text))
	if err != nil {
		return "", fmt.Errorf("key of the mesh: %w", err)
	}
	k, err := ecdh.X25519().NewPrivateKey(raw)
	if err != nil {
		return "", fmt.Errorf("key of the mesh: %w", err)
	}
	return base64.StdEncoding.EncodeToString(k.PublicKey().Bytes()), nil
}
