package secret_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/secret"
)

func TestKeysSignOrEncryptAndReadBack(t *testing.T) {
	for typ, signs := range map[string]bool{
		"hs256": true, "hs384": true, "hs512": true, "es256": true, "nacl_auth": true, "nacl_sign": true,
		"xaes256gcm": false, "nacl_box": false, "nacl_secretbox": false,
	} {
		k, err := secret.GenerateKey(typ)
		if err != nil {
			t.Fatal(err)
		}
		again, err := secret.ParseKey(typ, k.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		other, err := secret.GenerateKey(typ)
		if err != nil {
			t.Fatal(err)
		}
		text := []byte("a text")
		if !signs {
			if _, err := k.Sign(text); !errors.Is(err, volant.ErrInvalid) {
				t.Errorf("%s signs: %v", typ, err)
			}
			sealed, err := k.Encrypt(text, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := again.Decrypt(sealed, nil); err != nil || !bytes.Equal(got, text) {
				t.Errorf("%s decrypts %q, %v", typ, got, err)
			}
			if _, err := other.Decrypt(sealed, nil); !errors.Is(err, volant.ErrInvalid) {
				t.Errorf("%s: another key decrypts: %v", typ, err)
			}
			for i := range sealed {
				bad := bytes.Clone(sealed)
				bad[i] ^= 1
				if _, err := k.Decrypt(bad, nil); err == nil && (typ != "nacl_box" || i != 31) { // X25519 leaves out a bit
					t.Errorf("%s: byte %d changed, and it decrypts", typ, i)
				}
				if _, err := k.Decrypt(sealed[:i], nil); err == nil {
					t.Errorf("%s: %d bytes decrypt", typ, i)
				}
			}
			continue
		}
		if _, err := k.Encrypt(text, nil); !errors.Is(err, volant.ErrInvalid) {
			t.Errorf("%s encrypts: %v", typ, err)
		}
		sig, err := k.Sign(text)
		if err != nil {
			t.Fatal(err)
		}
		if err := again.Verify(text, sig); err != nil {
			t.Errorf("%s: %v", typ, err)
		}
		for what, err := range map[string]error{
			"another text": k.Verify([]byte("b"), sig), "another key": other.Verify(text, sig), "half": k.Verify(text, sig[:len(sig)/2]), "none": k.Verify(text, nil),
		} {
			if !errors.Is(err, volant.ErrInvalid) {
				t.Errorf("%s verifies %s: %v", typ, what, err)
			}
		}
	}
}

// The values are those of c2sp.org/XAES-256-GCM.
func TestXAESVectors(t *testing.T) {
	for _, c := range []struct {
		key    byte
		beside string
		want   string
	}{
		{1, "", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"},
		{3, "c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"},
	} {
		k, err := secret.ParseKey("xaes256gcm", bytes.Repeat([]byte{c.key}, 32))
		if err != nil {
			t.Fatal(err)
		}
		text, err := hex.DecodeString(c.want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := k.Decrypt(append([]byte("ABCDEFGHIJKLMNOPQRSTUVWX"), text...), []byte(c.beside))
		if err != nil || string(got) != "XAES-256-GCM" {
			t.Errorf("key %d: %q, %v", c.key, got, err)
		}
	}
}

func FuzzKeys(f *testing.F) {
	f.Add("es256", []byte{1}, []byte("x"))
	f.Add("xaes256gcm", bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{1}, 24))
	f.Add("nacl_box", bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{1}, 48))
	f.Fuzz(func(t *testing.T, typ string, value, text []byte) {
		k, err := secret.ParseKey(typ, value)
		if err != nil {
			return
		}
		if _, err := secret.ParseKey(typ, k.Bytes()); err != nil {
			t.Fatal(err)
		}
		_, _ = k.Decrypt(text, nil)
		_ = k.Verify(text, text)
	})
}
