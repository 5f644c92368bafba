package debimage

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
)

// HostKey is the key of the sshd image's server. It is made of a fixed phrase and protects nothing.
func HostKey() ed25519.PrivateKey { return fixedKey("volant test image: host key of sshd") }

// ClientKey is the key with which one may log in as root to the sshd image. It protects nothing either.
func ClientKey() ed25519.PrivateKey { return fixedKey("volant test image: client key of sshd") }

// ClientKeyFile is ClientKey as a file that ssh -i reads.
func ClientKeyFile() []byte { return []byte(privateKey(ClientKey())) }

func fixedKey(phrase string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte(phrase))
	return ed25519.NewKeyFromSeed(seed[:])
}

const keyType = "ssh-ed25519"

func appendString(b []byte, parts ...[]byte) []byte {
	for _, p := range parts {
		b = binary.BigEndian.AppendUint32(b, uint32(len(p)))
		b = append(b, p...)
	}
	return b
}

func publicBlob(k ed25519.PrivateKey) []byte {
	return appendString(nil, []byte(keyType), k[32:])
}

// publicKey is a line for authorized_keys.
func publicKey(k ed25519.PrivateKey) string {
	return keyType + " " + base64.StdEncoding.EncodeToString(publicBlob(k)) + " volant-test\n"
}

// privateKey is a key file in OpenSSH's own format, version 1, unencrypted; its random check number
// is fixed here, so that equal images are equal.
func privateKey(k ed25519.PrivateKey) string {
	secret := binary.BigEndian.AppendUint64(nil, 0x766f6c61_766f6c61)
	secret = appendString(secret, []byte(keyType), k[32:], k, []byte("volant-test"))
	for i := byte(1); len(secret)%8 != 0; i++ {
		secret = append(secret, i)
	}
	b := append([]byte("openssh-key-v1"), 0)
	b = appendString(b, []byte("none"), []byte("none"), nil)
	b = binary.BigEndian.AppendUint32(b, 1) // keys in it
	b = appendString(b, publicBlob(k), secret)
	return string(pem.EncodeToMemory(&pem.Block{Type: "OPENSSH PRIVATE KEY", Bytes: b}))
}
