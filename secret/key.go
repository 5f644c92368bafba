package secret

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"crypto/x509"
	"fmt"
	"hash"
	"math/big"
	"slices"
	"strings"

	"golang.org/x/crypto/curve25519"
	"golang.org/x/crypto/nacl/auth"
	"golang.org/x/crypto/nacl/box"
	"golang.org/x/crypto/nacl/secretbox"

	volant "github.com/volant-edge/volant"
)

// Key is a key that encrypts or signs for an app.
type Key struct {
	Type  string
	value []byte
}

// keyLen is the length of each type's key. Of es256 it is the private scalar, of nacl_sign the seed.
var keyLen = map[string]int{
	"hs256": 32, "hs384": 48, "hs512": 64, "es256": 32, "xaes256gcm": 32,
	"nacl_auth": 32, "nacl_box": 32, "nacl_secretbox": 32, "nacl_sign": 32,
}

// GenerateKey makes a key of a type.
func GenerateKey(typ string) (*Key, error) {
	n, ok := keyLen[typ]
	if !ok {
		return nil, noType(typ)
	}
	for {
		k := &Key{typ, make([]byte, n)}
		rand.Read(k.value) // never fails since Go 1.24
		if _, err := k.ecdsa(); typ != "es256" || err == nil {
			return k, nil
		}
	}
}

func noType(typ string) error {
	var all []string
	for t := range keyLen {
		all = append(all, t)
	}
	slices.Sort(all)
	return volant.Invalidf("key type %.40q: use one of %s", typ, strings.Join(all, ", "))
}

// ParseKey reads a key of a type: its raw bytes, for es256 also PKCS #8 or SEC 1 in DER, for nacl_sign also the seed
// with the public key behind it.
func ParseKey(typ string, value []byte) (*Key, error) {
	n, ok := keyLen[typ]
	if !ok {
		return nil, noType(typ)
	}
	value = slices.Clone(value)
	switch {
	case typ == "es256" && len(value) != n:
		scalar, err := parseEC(value)
		if err != nil {
			return nil, err
		}
		value = scalar
	case typ == "nacl_sign" && len(value) == ed25519.PrivateKeySize:
		if seed := value[:n]; subtle.ConstantTimeCompare(ed25519.NewKeyFromSeed(seed), value) == 0 {
			return nil, volant.Invalidf("the second half of the nacl_sign key is not its public key")
		}
		value = value[:n]
	case strings.HasPrefix(typ, "hs") && len(value) >= n && len(value) <= 128: // a longer one is as good
	case len(value) != n:
		return nil, volant.Invalidf("the value has %d bytes: a key of type %s has %d", len(value), typ, n)
	}
	k := &Key{typ, value}
	if typ == "es256" {
		if _, err := k.ecdsa(); err != nil {
			return nil, volant.Invalidf("the value is no private key of P-256")
		}
	}
	return k, nil
}

func parseEC(der []byte) ([]byte, error) {
	key, err := x509.ParseECPrivateKey(der)
	if err != nil {
		if parsed, err2 := x509.ParsePKCS8PrivateKey(der); err2 == nil {
			key, _ = parsed.(*ecdsa.PrivateKey) // another kind of key is nil, and refused below
		}
	}
	if key == nil || key.Curve != elliptic.P256() {
		return nil, volant.Invalidf("the value is no private key of P-256").WithRemedy("give 32 bytes, or PKCS #8 or SEC 1 in DER")
	}
	return key.Bytes()
}

// Bytes are the key's own, which ParseKey reads.
func (k *Key) Bytes() []byte { return slices.Clone(k.value) }

func (k *Key) ecdsa() (*ecdsa.PrivateKey, error) {
	return ecdsa.ParseRawPrivateKey(elliptic.P256(), k.value)
}

// Public is the public half, nil where there is none.
func (k *Key) Public() ([]byte, error) {
	switch k.Type {
	case "es256":
		priv, err := k.ecdsa()
		if err != nil {
			return nil, err
		}
		return x509.MarshalPKIXPublicKey(priv.Public())
	case "nacl_sign":
		return ed25519.NewKeyFromSeed(k.value)[ed25519.SeedSize:], nil
	case "nacl_box":
		return curve25519.X25519(k.value, curve25519.Basepoint)
	}
	return nil, nil
}

func (k *Key) cannot(what string) error {
	return volant.Invalidf("a key of type %s does not %s", k.Type, what).WithRemedy("use a key of another type")
}

func (k *Key) hash() func() hash.Hash {
	switch k.Type {
	case "hs256":
		return sha256.New
	case "hs384":
		return sha512.New384
	case "hs512":
		return sha512.New
	}
	return nil
}

func array32(b []byte) *[32]byte { return (*[32]byte)(b) }

// Sign returns the signature of a text: of es256 r and s with 32 bytes each, as in JSON Web Signatures.
func (k *Key) Sign(text []byte) ([]byte, error) {
	if h := k.hash(); h != nil {
		mac := hmac.New(h, k.value)
		mac.Write(text)
		return mac.Sum(nil), nil
	}
	switch k.Type {
	case "nacl_auth":
		return auth.Sum(text, array32(k.value))[:], nil
	case "nacl_sign":
		return ed25519.Sign(ed25519.NewKeyFromSeed(k.value), text), nil
	case "es256":
		priv, err := k.ecdsa()
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(text)
		r, s, err := ecdsa.Sign(rand.Reader, priv, sum[:])
		if err != nil {
			return nil, fmt.Errorf("sign: %w", err)
		}
		out := make([]byte, 64)
		r.FillBytes(out[:32])
		s.FillBytes(out[32:])
		return out, nil
	}
	return nil, k.cannot("sign")
}

// Verify says that a signature is not the text's, or nil.
func (k *Key) Verify(text, sig []byte) error {
	var ok bool
	switch {
	case k.hash() != nil:
		want, err := k.Sign(text)
		if err != nil {
			return err
		}
		ok = hmac.Equal(want, sig)
	case k.Type == "nacl_auth":
		ok = len(sig) == auth.Size && auth.Verify(sig, text, array32(k.value))
	case k.Type == "nacl_sign":
		pub, err := k.Public()
		if err != nil {
			return err
		}
		ok = len(sig) == ed25519.SignatureSize && ed25519.Verify(pub, text, sig)
	case k.Type == "es256":
		priv, err := k.ecdsa()
		if err != nil {
			return err
		}
		sum := sha256.Sum256(text)
		ok = len(sig) == 64 && ecdsa.Verify(&priv.PublicKey, sum[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:]))
	default:
		return k.cannot("verify")
	}
	if !ok {
		return volant.Invalidf("the signature is not of this text by this key")
	}
	return nil
}

// Encrypt returns a text that this key decrypts. Only xaes256gcm binds it to data beside it.
func (k *Key) Encrypt(text, beside []byte) ([]byte, error) {
	if len(beside) > 0 && k.Type != "xaes256gcm" {
		return nil, k.cannot("take associated_data")
	}
	nonce := make([]byte, 24)
	rand.Read(nonce) // never fails since Go 1.24
	switch k.Type {
	case "xaes256gcm":
		aead, err := xaes(k.value, nonce)
		if err != nil {
			return nil, err
		}
		return aead.Seal(nonce, nonce[12:], text, beside), nil
	case "nacl_secretbox":
		return secretbox.Seal(nonce, text, (*[24]byte)(nonce), array32(k.value)), nil
	case "nacl_box":
		pub, err := k.Public()
		if err != nil {
			return nil, err
		}
		return box.SealAnonymous(nil, text, array32(pub), rand.Reader)
	}
	return nil, k.cannot("encrypt")
}

// Decrypt returns the text that Encrypt was given.
func (k *Key) Decrypt(sealed, beside []byte) ([]byte, error) {
	if len(beside) > 0 && k.Type != "xaes256gcm" {
		return nil, k.cannot("take associated_data")
	}
	var plain []byte
	ok := false
	switch k.Type {
	case "xaes256gcm":
		if len(sealed) < 24 {
			break
		}
		aead, err := xaes(k.value, sealed[:24])
		if err != nil {
			return nil, err
		}
		plain, err = aead.Open(nil, sealed[12:24], sealed[24:], beside)
		ok = err == nil
	case "nacl_secretbox":
		if len(sealed) >= 24 {
			plain, ok = secretbox.Open(nil, sealed[24:], (*[24]byte)(sealed[:24]), array32(k.value))
		}
	case "nacl_box":
		pub, err := k.Public()
		if err != nil {
			return nil, err
		}
		plain, ok = box.OpenAnonymous(nil, sealed, array32(pub), array32(k.value))
	default:
		return nil, k.cannot("decrypt")
	}
	if !ok {
		return nil, volant.Invalidf("the ciphertext was not made by this key, or was changed")
	}
	return plain, nil
}

// xaes is XAES-256-GCM for one nonce of 24 bytes: AES-256-GCM for its second half, with a key that is derived from
// its first half by one round of the CMAC-based function of NIST SP 800-108r1, as c2sp.org/XAES-256-GCM has it.
func xaes(key, nonce []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	var k1 [aes.BlockSize]byte
	block.Encrypt(k1[:], k1[:])
	msb := k1[0] >> 7
	for i := range k1 {
		k1[i] <<= 1
		if i+1 < len(k1) {
			k1[i] |= k1[i+1] >> 7
		}
	}
	k1[len(k1)-1] ^= msb * 0x87
	derived := make([]byte, 2*aes.BlockSize)
	for n := range 2 {
		m := [aes.BlockSize]byte{0, byte(n + 1), 'X', 0}
		copy(m[4:], nonce[:12])
		subtle.XORBytes(m[:], m[:], k1[:])
		block.Encrypt(derived[n*aes.BlockSize:], m[:])
	}
	inner, err := aes.NewCipher(derived)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	return cipher.NewGCM(inner)
}
