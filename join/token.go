package join

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"

	volant "github.com/volant-edge/volant"
)

// prefix heads a token's text; another form of token has another number.
const prefix = "vj1_"

const (
	secretLen = 24 // bytes
	sumLen    = 4
	rawLen    = secretLen + sha256.Size + sumLen
)

// Fingerprint names the key of a cluster's join listeners: SHA-256 of its public half, as X.509 writes it.
type Fingerprint [sha256.Size]byte

// FingerprintOf is the fingerprint of a key.
func FingerprintOf(key ed25519.PrivateKey) (Fingerprint, error) {
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return Fingerprint{}, fmt.Errorf("key of the join listener: %w", err)
	}
	return sha256.Sum256(der), nil
}

// Token is what an operator carries to a new server.
type Token struct {
	Secret  [secretLen]byte
	Cluster Fingerprint
}

// NewToken makes a token of a cluster.
func NewToken(cluster Fingerprint) Token {
	t := Token{Cluster: cluster}
	rand.Read(t.Secret[:]) // never fails since Go 1.24
	return t
}

// String is the token's text, which ParseToken reads.
func (t Token) String() string {
	raw := append(t.Secret[:], t.Cluster[:]...)
	sum := sha256.Sum256(raw)
	return prefix + base64.RawURLEncoding.EncodeToString(append(raw, sum[:sumLen]...))
}

// ParseToken reads a token. One that was cut off or mistyped is refused.
func ParseToken(text string) (Token, error) {
	var t Token
	body, ok := strings.CutPrefix(strings.TrimSpace(text), prefix)
	if !ok {
		return t, volant.Invalidf("this is no join token: one begins with %s", prefix).
			WithRemedy("make one with `volant join-token create` on a server of the cluster")
	}
	if len(body) != base64.RawURLEncoding.EncodedLen(rawLen) {
		return t, volant.Invalidf("the join token is %d characters long, not %d", len(body)+len(prefix), base64.RawURLEncoding.EncodedLen(rawLen)+len(prefix)).
			WithRemedy("give the whole of it")
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil {
		return t, volant.Invalidf("the join token has characters that none has").WithRemedy("copy it again")
	}
	sum := sha256.Sum256(raw[:rawLen-sumLen])
	if subtle.ConstantTimeCompare(sum[:sumLen], raw[rawLen-sumLen:]) != 1 {
		return t, volant.Invalidf("the join token was changed on its way").WithRemedy("copy it again")
	}
	copy(t.Secret[:], raw)
	copy(t.Cluster[:], raw[secretLen:])
	return t, nil
}

// Hash is what the cluster keeps of the token.
func (t Token) Hash() string { return HashSecret(t.Secret[:]) }

// ID names the token: the first 16 digits of its hash.
func (t Token) ID() string { return t.Hash()[:IDLen] }

// IDLen is the length of a token's ID.
const IDLen = 16

// HashSecret is the form in which a token's secret is kept.
func HashSecret(secret []byte) string {
	sum := sha256.Sum256(secret)
	return hex.EncodeToString(sum[:])
}
