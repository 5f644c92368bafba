package control_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/volanttest"
)

func TestKeysOfAnApp(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		newApp(t, p, "web")
		const keys = "/v1/apps/web/secretkeys"
		body := func(v any) string {
			b, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
		for i, typ := range []string{"hs256", "hs384", "hs512", "es256", "nacl_auth", "nacl_sign", "xaes256gcm", "nacl_box", "nacl_secretbox"} {
			path := fmt.Sprintf("%s/K%d", keys, i)
			code, made := ask[api.ChangedSecretKey](t, p, "POST", path+"/generate", body(api.SetSecretKey{Type: typ}))
			if code != 201 || made.Type != typ || made.Version != uint64(i+1) {
				t.Fatalf("generate %s: %d %+v", typ, code, made)
			}
			if code, e := call(t, p, p.Token(), "POST", path+"/generate", body(api.SetSecretKey{Type: typ})); code != 422 {
				t.Errorf("again: %d %+v, want 422", code, e)
			}
			text := []byte("text of " + typ)
			if code, sig := ask[api.SignedSecretKey](t, p, "POST", path+"/sign", body(api.SignSecretKey{Plaintext: text})); code == 200 {
				if code, _ := ask[any](t, p, "POST", path+"/verify", body(api.VerifySecretKey{Plaintext: text, Signature: sig.Signature})); code != 204 {
					t.Errorf("%s verifies: %d, want 204", typ, code)
				}
				if code, _ := call(t, p, p.Token(), "POST", path+"/verify", body(api.VerifySecretKey{Plaintext: []byte("x"), Signature: sig.Signature})); code != 400 {
					t.Errorf("%s verifies another text: %d, want 400", typ, code)
				}
				continue
			}
			code, sealed := ask[api.EncryptedSecretKey](t, p, "POST", path+"/encrypt", body(api.EncryptSecretKey{Plaintext: text}))
			if code != 200 {
				t.Fatalf("%s neither signs nor encrypts: %d", typ, code)
			}
			if code, open := ask[api.DecryptedSecretKey](t, p, "POST", path+"/decrypt", body(api.DecryptSecretKey{Ciphertext: sealed.Ciphertext})); code != 200 || string(open.Plaintext) != string(text) {
				t.Errorf("%s decrypts: %d %q", typ, code, open.Plaintext)
			}
		}
		code, list := ask[api.SecretKeys](t, p, "GET", keys+"?types=es256,nacl_box&min_version=9", "")
		if code != 200 || len(list.SecretKeys) != 2 || len(list.SecretKeys[0].PublicKey) == 0 {
			t.Errorf("list: %d %+v", code, list)
		}
		if code, _ := call(t, p, p.Token(), "GET", keys+"?min_version=99", ""); code != 412 {
			t.Errorf("a version that is not there: %d, want 412", code)
		}
		if code, got := ask[api.SecretsVersion](t, p, "DELETE", keys+"/K0", ""); code != 200 || got.Version != 10 {
			t.Errorf("delete: %d %+v", code, got)
		}
		if code, _ := call(t, p, p.Token(), "GET", keys+"/K0", ""); code != 404 {
			t.Errorf("a deleted key: %d, want 404", code)
		}
		set := api.SetSecretKey{Type: "hs256", Value: []byte("0123456789abcdef0123456789abcdef")}
		if code, _ := ask[api.ChangedSecretKey](t, p, "POST", keys+"/MINE", body(set)); code != 201 {
			t.Errorf("set: %d", code)
		}
		for _, bad := range []api.SetSecretKey{{Type: "rsa"}, {Type: "es256", Value: []byte("short")}, {Type: "hs256"}} {
			if code, _ := call(t, p, p.Token(), "POST", keys+"/BAD", body(bad)); code != 400 {
				t.Errorf("%+v: %d, want 400", bad, code)
			}
		}
		if secrets, err := p.API.Secrets(t.Context(), "web"); err != nil || len(secrets.Secrets) != 0 {
			t.Errorf("keys are among secrets: %+v, %v", secrets, err)
		}
	})
}
