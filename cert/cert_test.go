package cert_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/cert"
)

var epoch = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

func authority(t testing.TB, domain string) *cert.Authority {
	t.Helper()
	a, made, err := cert.Open(t.TempDir(), "0123abcd", domain, epoch)
	if err != nil || !made {
		t.Fatalf("made %v, %v", made, err)
	}
	return a
}

func trust(a *cert.Authority) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(a.PEM())
	return pool
}

func TestAClientThatTrustsTheAuthorityTrustsItsLeaves(t *testing.T) {
	a := authority(t, "apps.corp.net")
	for _, name := range []string{"shop.localhost", "localhost", "shop.apps.corp.net", "a.b.test"} {
		p, err := a.Issue([]string{name}, epoch)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, at := range []time.Duration{-30 * time.Minute, 0, 89 * 24 * time.Hour} {
			if _, err := p.Leaf.Verify(x509.VerifyOptions{Roots: trust(a), DNSName: name, CurrentTime: epoch.Add(at)}); err != nil {
				t.Errorf("%s after %v: %v", name, at, err)
			}
		}
		if _, err := p.Leaf.Verify(x509.VerifyOptions{Roots: trust(a), DNSName: name, CurrentTime: epoch.Add(91 * 24 * time.Hour)}); err == nil {
			t.Errorf("%s is trusted after 91 days", name)
		}
		if _, err := cert.Parse(p.Chain, p.Key); err != nil {
			t.Errorf("%s: what was issued does not parse: %v", name, err)
		}
	}
}

// Who has the authority's key still cannot make machines that trust it believe in names of the Internet.
func TestTheAuthorityIsTrustedForItsDomainsOnly(t *testing.T) {
	a, dir := cert.Authority{}, t.TempDir()
	if got, _, err := cert.Open(dir, "0123abcd", "localhost", epoch); err != nil {
		t.Fatal(err)
	} else {
		a = *got
	}
	if _, err := a.Issue([]string{"bank.com"}, epoch); !errors.Is(err, volant.ErrInvalid) {
		t.Errorf("Issue for bank.com: %v, want ErrInvalid", err)
	}
	caBlock, _ := pem.Decode(a.PEM())
	ca, err := x509.ParseCertificate(caBlock.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, cert.CAKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	keyBlock, _ := pem.Decode(b)
	stolen, err := x509.ParseECPrivateKey(keyBlock.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"bank.com", "notlocalhost"} {
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotBefore: epoch, NotAfter: epoch.Add(time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, ca, &stolen.PublicKey, stolen)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		var bad x509.CertificateInvalidError
		_, err = leaf.Verify(x509.VerifyOptions{Roots: trust(&a), DNSName: name, CurrentTime: epoch})
		if !errors.As(err, &bad) || bad.Reason != x509.CANotAuthorizedForThisName {
			t.Errorf("%s: %v, want a refusal by the name constraints", name, err)
		}
	}
}

func TestTheAuthorityIsMadeOnce(t *testing.T) {
	dir := t.TempDir()
	first, made, err := cert.Open(dir, "0123abcd", "localhost", epoch)
	if err != nil || !made {
		t.Fatal(made, err)
	}
	if !strings.Contains(first.Name(), "Volant development CA 0123abcd") {
		t.Errorf("its name is %q", first.Name())
	}
	again, made, err := cert.Open(dir, "0123abcd", "localhost", epoch.Add(time.Hour))
	if err != nil || made || !bytes.Equal(first.PEM(), again.PEM()) {
		t.Errorf("opened again: made %v, %v", made, err)
	}
	for file, want := range map[string]os.FileMode{cert.CAKeyFile: 0o600, cert.CAFile: 0o644} {
		st, err := os.Stat(filepath.Join(dir, file))
		if err != nil || st.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v (%v)", file, st.Mode(), want, err)
		}
	}
	other, made, err := cert.Open(dir, "0123abcd", "apps.corp.net", epoch)
	if err != nil || !made || !other.Permits("x.apps.corp.net") {
		t.Errorf("with another domain: made %v, %v", made, err)
	}
	if err := os.Remove(filepath.Join(dir, cert.CAKeyFile)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := cert.Open(dir, "0123abcd", "apps.corp.net", epoch); !errors.Is(err, volant.ErrInvalid) {
		t.Errorf("without its key: %v, want ErrInvalid", err)
	}
}

func TestCertificatesAreRenewedAtTwoThirds(t *testing.T) {
	a, dir := authority(t, "localhost"), t.TempDir()
	issued, err := cert.NewIssued(a, dir)
	if err != nil {
		t.Fatal(err)
	}
	day := 24 * time.Hour
	get := func(after time.Duration) *cert.Pair {
		t.Helper()
		p, err := issued.Pair("Shop.localhost.", epoch.Add(after))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	first := get(0)
	if get(59*day) != first {
		t.Error("another one after 59 days")
	}
	if issued, err = cert.NewIssued(a, dir); err != nil { // a restart
		t.Fatal(err)
	}
	if !bytes.Equal(get(59*day).Chain, first.Chain) {
		t.Error("another one after a restart")
	}
	second := get(61 * day)
	if bytes.Equal(second.Chain, first.Chain) {
		t.Error("the same one after 61 days")
	}
	if err := os.WriteFile(filepath.Join(dir, "shop.localhost.pem"), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if issued, err = cert.NewIssued(a, dir); err != nil {
		t.Fatal(err)
	}
	get(61 * day)
	issued.Retain(func(name string) bool { return name != "shop.localhost" })
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left on disk: %v", left)
	}
	if _, err := issued.Pair("../../etc/passwd", epoch); !errors.Is(err, volant.ErrInvalid) {
		t.Errorf("a path as a name: %v", err)
	}
}

func TestStages(t *testing.T) {
	p, err := authority(t, "localhost").Issue([]string{"a.localhost"}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	day := 24 * time.Hour
	for at, want := range map[time.Duration]cert.Stage{
		-2 * time.Hour: cert.Early, 0: cert.Valid, 59 * day: cert.Valid, 61 * day: cert.Due, 77 * day: cert.Ending, 91 * day: cert.Expired,
	} {
		if got := p.Stage(epoch.Add(at)); got != want {
			t.Errorf("after %v: %v, want %v", at, got, want)
		}
	}
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// self makes a self-signed certificate with its key.
func self(t testing.TB, key any, change func(*x509.Certificate)) (chain, keyPEM []byte) {
	t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "x"}, DNSNames: []string{"shop.example.com", "*.shop.example.com"},
		NotBefore: epoch, NotAfter: epoch.Add(time.Hour), BasicConstraintsValid: true,
	}
	if change != nil {
		change(tmpl)
	}
	var pub any
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		pub = &k.PublicKey
	case *rsa.PrivateKey:
		pub = &k.PublicKey
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	kder, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return encode("CERTIFICATE", der), encode("PRIVATE KEY", kder)
}

func ecKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestWhatOperatorsBring(t *testing.T) {
	k := ecKey(t)
	good, key := self(t, k, nil)
	_, otherKey := self(t, ecKey(t), nil)
	ca, caKey := self(t, k, func(c *x509.Certificate) { c.IsCA = true })
	nameless, _ := self(t, k, func(c *x509.Certificate) { c.DNSNames = nil })
	small, err := rsa.GenerateKey(rand.Reader, 1024) //nolint:gosec // it is to be refused
	if err != nil {
		t.Skip("this Go makes no small keys:", err)
	}
	weak, weakKey := self(t, small, nil)
	for _, c := range []struct {
		name       string
		chain, key []byte
		want       string // "" is fine
	}{
		{"a certificate and its key", good, key, ""},
		{"both in each", append(append([]byte(nil), key...), good...), append(append([]byte(nil), good...), key...), ""},
		{"another key", good, otherKey, "do not fit together"},
		{"nothing", nil, nil, "no certificate in the chain"},
		{"text", []byte("hello"), key, "no certificate in the chain"},
		{"no key", good, []byte("hello"), "do not fit together"},
		{"a broken certificate", encode("CERTIFICATE", []byte("hello")), key, "certificate 1 of the chain cannot be read"},
		{"a chain in disorder", append(append([]byte(nil), good...), nameless...), key, "was not issued by the next one"},
		{"an encrypted key", good, encode("ENCRYPTED PRIVATE KEY", []byte("x")), "encrypted with a passphrase"},
		{"an authority", ca, caKey, "is an authority's"},
		{"no host name", nameless, key, "names no host"},
		{"a weak key", weak, weakKey, "1024 bits"},
		{"too long a chain", bytes.Repeat(good, 11), key, "more than 10 certificates"},
		{"too much", bytes.Repeat([]byte("x"), 65<<10), key, "at most 65536"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := cert.Parse(c.chain, c.key)
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (!errors.Is(err, volant.ErrInvalid) || !strings.Contains(err.Error(), c.want)):
				t.Errorf("error is %v, want one with %q", err, c.want)
			}
		})
	}
	p, err := cert.Parse(append(append([]byte(nil), key...), good...), append(append([]byte(nil), good...), key...))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p.Chain, good) || !bytes.Equal(p.Key, key) {
		t.Errorf("what stood beside was kept: chain\n%s\nkey\n%s", p.Chain, p.Key)
	}
	for name, covered := range map[string]bool{
		"shop.example.com": true, "a.shop.example.com": true, "*.shop.example.com": true, "a.b.shop.example.com": false, "example.com": false,
	} {
		if got := p.Covers(name) == nil; got != covered {
			t.Errorf("Covers(%s) is %v, want %v", name, got, covered)
		}
	}
	if p.KeyType() != "ecdsa" {
		t.Errorf("key type is %s", p.KeyType())
	}
}

func TestHostname(t *testing.T) {
	for in, want := range map[string]string{
		"Shop.Example.com.": "shop.example.com", "*.a.b": "*.a.b", "localhost": "localhost", "xn--bcher-kva.example": "xn--bcher-kva.example",
		"": "", "a..b": "", "-a.b": "", "a_b.c": "", "*": "", "*.": "", "a.*.b": "", "1.2.3.4": "", "::1": "", "bücher.example": "",
		"a/b": "", strings.Repeat("a", 64) + ".b": "", strings.Repeat("a.", 127) + "b": "",
	} {
		if want != "" {
			if got, err := cert.Hostname(in); err != nil || got != want {
				t.Errorf("Hostname(%q) = %q, %v; want %q", in, got, err, want)
			}
		} else if got, err := cert.Hostname(in); !errors.Is(err, volant.ErrInvalid) {
			t.Errorf("Hostname(%q) = %q, %v; want ErrInvalid", in, got, err)
		}
	}
}

// Another implementation agrees with the constraints.
func TestOpenSSLTrustsWhatIsIssued(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed")
	}
	dir := t.TempDir()
	a, _, err := cert.Open(dir, "0123abcd", "localhost", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	p, err := a.Issue([]string{"shop.localhost"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	leaf := filepath.Join(dir, "leaf.pem")
	if err := os.WriteFile(leaf, p.Chain, 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", filepath.Join(dir, cert.CAFile), "-verify_hostname", "shop.localhost", leaf}
	if out, err := exec.CommandContext(t.Context(), openssl, args...).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func TestOnlyABoundAuthorityIsInstalled(t *testing.T) {
	a := authority(t, "apps.corp.net")
	got, err := cert.Trustable(a.PEM())
	if err != nil || got.Node != "0123abcd" || got.PEM != string(a.PEM()) || len(got.Domains) != 7 {
		t.Errorf("got %+v, %v", got, err)
	}
	unbound, _ := self(t, ecKey(t), func(c *x509.Certificate) {
		c.Subject.CommonName, c.IsCA, c.MaxPathLenZero = "Volant development CA 0123abcd", true, true
	})
	leaf, err := a.Issue([]string{"a.localhost"}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"unbound": unbound, "leaf": leaf.Chain, "two": append(a.PEM(), a.PEM()...), "text": []byte("<html>"),
	} {
		if got, err := cert.Trustable(b); !errors.Is(err, volant.ErrInvalid) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	good, key := self(f, ecKey(f), nil)
	f.Add(good, key)
	f.Add(append(append([]byte(nil), good...), good...), key)
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), []byte{})
	f.Fuzz(func(t *testing.T, chain, key []byte) {
		p, err := cert.Parse(chain, key)
		if (p == nil) == (err == nil) {
			t.Fatalf("pair %v, error %v", p, err)
		}
		if err != nil {
			return
		}
		_ = p.Covers("a.example.com")
		_, _ = p.Stage(epoch), p.KeyType()
	})
}
