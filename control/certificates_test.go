package control_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"strings"
	"testing"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/control"
	"github.com/volant-edge/volant/volanttest"
)

// pair makes a certificate that signs itself, and its key.
func pair(t *testing.T, from, to time.Time, names ...string) (chain, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: from, NotAfter: to, DNSNames: names}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
}

func TestCertificatesThatAreBrought(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		ctx, now := t.Context(), time.Now()
		addr, _ := p.Deploy("web", volanttest.Image)
		newApp(t, p, "other")
		chain, key := pair(t, now.Add(-time.Hour), now.Add(48*time.Hour), "*.example.com", "example.com")
		v, err := p.API.AddCertificate(ctx, "web", api.CreateCustomCertificate{Hostname: "*.Example.com.", Fullchain: chain, PrivateKey: key})
		if err != nil || v.Hostname != "*.example.com" || v.Status != "active" || !v.Configured || len(v.Certificates) != 1 || v.Certificates[0].Source != "custom" {
			t.Fatalf("got %+v, %v", v, err)
		}
		if v.DNSRequirements.A[0] != addr.Addr().String() {
			t.Errorf("it asks for %+v, want the app's address %s", v.DNSRequirements, addr)
		}
		rec, ok := p.Node.Catalog().Snapshot().Certificate("*.example.com")
		if !ok {
			t.Fatal("the catalog does not know it")
		}
		plain, err := p.Box().Open(control.CertificatePlace("*.example.com"), rec.Sealed)
		if err != nil || string(plain) != key {
			t.Errorf("the key opens as %q, %v", plain, err)
		}
		if strings.Contains(string(rec.Chain), "PRIVATE") {
			t.Error("the chain shows the key")
		}
		if _, err := p.API.AddHost(ctx, "other", "*.example.com"); !errors.Is(err, volant.ErrExists) {
			t.Errorf("another app takes the name: %v", err)
		}
		if got, err := p.API.Certificate(ctx, "web", "*.example.com"); err != nil || got.Status != "active" {
			t.Errorf("read back: %+v, %v", got, err)
		}
		if _, err := p.API.Certificate(ctx, "other", "*.example.com"); !errors.Is(err, volant.ErrNotFound) {
			t.Errorf("read through another app: %v", err)
		}
		time.Sleep(72 * time.Hour)
		if got, err := p.API.Certificate(ctx, "web", "*.example.com"); err != nil || got.Configured || got.ValidationErrors[0].Code != "expired" {
			t.Errorf("after its end: %+v, %v", got, err)
		}
		chain, key = pair(t, time.Now(), time.Now().Add(time.Hour), "*.example.com")
		if v, err := p.API.AddCertificate(ctx, "web", api.CreateCustomCertificate{Hostname: "*.example.com", Fullchain: chain, PrivateKey: key}); err != nil || !v.Configured {
			t.Errorf("a new one in its place: %+v, %v", v, err)
		}
		code, gone := ask[api.Certificate](t, p, "DELETE", "/v1/apps/web/certificates/%2A.example.com/custom", "")
		if code != 200 || gone.Warning == "" || len(gone.Certificates) != 0 {
			t.Errorf("without its certificate: %d %+v", code, gone)
		}
		if err := p.API.RemoveCertificate(ctx, "web", "*.example.com"); err != nil {
			t.Fatal(err)
		}
		if _, err := p.API.AddHost(ctx, "other", "*.example.com"); err != nil {
			t.Errorf("another app takes the name that is free: %v", err)
		}
		if err := p.API.DestroyApp(ctx, "other", true); err != nil {
			t.Fatal(err)
		}
		if rec, ok := p.Node.Catalog().Snapshot().Certificate("*.example.com"); !ok || !rec.Tombstone {
			t.Errorf("a destroyed app's name is not free: %+v", rec)
		}
	})
}

func TestBadCertificatesNameCauseAndCure(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		ctx, now := t.Context(), time.Now()
		newApp(t, p, "web")
		good, key := pair(t, now.Add(-time.Hour), now.Add(time.Hour), "a.example.com")
		late, lateKey := pair(t, now.Add(time.Hour), now.Add(2*time.Hour), "a.example.com")
		old, oldKey := pair(t, now.Add(-2*time.Hour), now.Add(-time.Hour), "a.example.com")
		for _, c := range []struct{ name, host, chain, key, text string }{
			{"no chain", "a.example.com", "", key, "no certificate"},
			{"no PEM", "a.example.com", "hello", key, "no certificate"},
			{"no key", "a.example.com", good, "", "fit together"},
			{"another key", "a.example.com", good, lateKey, "fit together"},
			{"another host", "b.example.com", good, key, "not for b.example.com"},
			{"a pattern it does not cover", "*.example.com", good, key, "not for *.example.com"},
			{"expired", "a.example.com", old, oldKey, "expired"},
			{"not valid yet", "a.example.com", late, lateKey, "not valid before"},
			{"no host", "", good, key, "host name"},
			{"an address", "192.0.2.1", good, key, "address"},
			{"a slash", "a/b", good, key, "host name"},
		} {
			in := api.CreateCustomCertificate{Hostname: c.host, Fullchain: c.chain, PrivateKey: c.key}
			if _, err := p.API.AddCertificate(ctx, "web", in); !errors.Is(err, volant.ErrInvalid) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%s: %v, want invalid with %q in it", c.name, err, c.text)
			}
		}
		if code, e := call(t, p, p.Token(), "POST", "/v1/apps/web/certificates/acme", `{"hostname":"a.example.com"}`); code != 501 || e.Remedy == "" {
			t.Errorf("ACME: %d %+v, want 501 with a remedy", code, e)
		}
	})
}

func TestHostNamesAreListedByPages(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		ctx := t.Context()
		newApp(t, p, "web")
		for i := range 7 {
			if _, err := p.API.AddHost(ctx, "web", fmt.Sprintf("h%d.example.com", i)); err != nil {
				t.Fatal(err)
			}
		}
		var seen []string
		cursor := ""
		for range 9 {
			code, page := ask[api.CertificateList](t, p, "GET", "/v1/apps/web/certificates?limit=3&cursor="+cursor, "")
			if code != 200 || page.TotalCount != 7 || len(page.Certificates) > 3 {
				t.Fatalf("%d %+v", code, page)
			}
			for _, c := range page.Certificates {
				seen = append(seen, c.Hostname)
			}
			if cursor = page.NextCursor; cursor == "" {
				break
			}
		}
		if len(seen) != 7 || seen[0] != "h0.example.com" || seen[6] != "h6.example.com" {
			t.Errorf("pages show %v", seen)
		}
		if code, page := ask[api.CertificateList](t, p, "GET", "/v1/apps/web/certificates?filter=H3", ""); code != 200 || page.TotalCount != 1 {
			t.Errorf("filtered: %d %+v", code, page)
		}
		if code, _ := call(t, p, p.Token(), "GET", "/v1/apps/web/certificates?limit=501", ""); code != 400 {
			t.Errorf("a page of 501: %d, want 400", code)
		}
	})
}

func TestACheckSaysWhereAHostNameLeads(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		ctx := t.Context()
		addr, _ := p.Deploy("web", volanttest.Image)
		newApp(t, p, "bare")
		p.Names = map[string][]netip.Addr{
			"good.example.com": {addr.Addr()}, "bad.example.com": {netip.MustParseAddr("192.0.2.1")}, "bare.example.com": {addr.Addr()},
		}
		for host, want := range map[string]struct {
			app, code string
			good      bool
		}{
			"good.example.com": {"web", "", true},
			"bad.example.com":  {"web", "dns_elsewhere", false},
			"none.example.com": {"web", "dns_lookup", false},
			"*.example.com":    {"web", "dns_wildcard", false},
			"bare.example.com": {"bare", "no_address", false},
		} {
			if _, err := p.API.AddHost(ctx, want.app, host); err != nil {
				t.Fatal(err)
			}
			v, err := p.API.CheckCertificate(ctx, want.app, host)
			if err != nil || v.Validation == nil || v.Validation.DNSConfigured != want.good {
				t.Errorf("%s: %+v, %v", host, v, err)
				continue
			}
			if last := v.ValidationErrors[len(v.ValidationErrors)-1]; want.code != "" && (last.Code != want.code || last.Remediation == "") {
				t.Errorf("%s: %+v, want %s", host, last, want.code)
			}
		}
	})
}
