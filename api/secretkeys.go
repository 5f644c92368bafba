package api

import "time"

// SecretKey is what may be shown of a key that the platform keeps and uses for an app.
type SecretKey struct {
	Name      string    `json:"name"`
	Type      string    `json:"type"`
	PublicKey []byte    `json:"public_key,omitempty"` // of es256 (PKIX), nacl_box and nacl_sign
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}

// SecretKeys are an app's keys, by name.
type SecretKeys struct {
	SecretKeys []SecretKey `json:"secret_keys"`
}

// SetSecretKey is the body of POST /v1/apps/{app}/secretkeys/{name} and …/generate, which takes no value.
type SetSecretKey struct {
	Type  string `json:"type"` // es256, hs256, hs384, hs512, xaes256gcm, nacl_auth, nacl_box, nacl_secretbox, nacl_sign
	Value []byte `json:"value,omitempty"`
}

// ChangedSecretKey answers a key that was set or generated.
type ChangedSecretKey struct {
	SecretKey
	Version uint64 `json:"version"` // of all keys of the app
}

// EncryptSecretKey is the body of POST …/encrypt.
type EncryptSecretKey struct {
	Plaintext      []byte `json:"plaintext"`
	AssociatedData []byte `json:"associated_data,omitempty"` // with xaes256gcm only
}

// EncryptedSecretKey answers POST …/encrypt.
type EncryptedSecretKey struct {
	Ciphertext []byte `json:"ciphertext"`
}

// DecryptSecretKey is the body of POST …/decrypt.
type DecryptSecretKey struct {
	Ciphertext     []byte `json:"ciphertext"`
	AssociatedData []byte `json:"associated_data,omitempty"` // as when it was encrypted
}

// DecryptedSecretKey answers POST …/decrypt.
type DecryptedSecretKey struct {
	Plaintext []byte `json:"plaintext"`
}

// SignSecretKey is the body of POST …/sign.
type SignSecretKey struct {
	Plaintext []byte `json:"plaintext"`
}

// SignedSecretKey answers POST …/sign.
type SignedSecretKey struct {
	Signature []byte `json:"signature"`
}

// VerifySecretKey is the body of POST …/verify.
type VerifySecretKey struct {
	Plaintext []byte `json:"plaintext"`
	Signature []byte `json:"signature"`
}
