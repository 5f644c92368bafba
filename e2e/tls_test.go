package e2e_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/volant-edge/volant/api"
)

// An app with a secret, a file of a secret, an http check and the handlers tls and http answers at its name by
// HTTPS to a client that trusts the development CA, also while the server is dead.
func TestHTTPSWithSecretsFilesAndChecks(t *testing.T) {
	t.Parallel()
	s := start(t)
	ctx := t.Context()
	if _, err := s.API.CreateApp(ctx, "shop", ""); err != nil {
		t.Fatal(err)
	}
	port, key := "9090", "a2V5IG9mIHRoZSBzaG9w"
	if _, err := s.API.SetSecrets(ctx, "shop", map[string]*string{"PORT": &port, "KEY": &key}); err != nil {
		t.Fatal(err)
	}
	ip, err := s.Deploy(ctx, "shop", archive(t, "testserver"), `app = "shop"
[http_service]
internal_port = 9090
[[http_service.checks]]
path = "/"
interval = "2s"
[[files]]
guest_path = "/etc/shop/key"
secret_name = "KEY"
[scale]
min = 1
`)
	if err != nil {
		t.Fatal(s.WithLog(err))
	}
	ca, err := s.API.CA(ctx)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	client := http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(ip, "443"))
		},
		TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true, DisableKeepAlives: true,
	}}
	get := func(when string) {
		t.Helper()
		res, err := client.Get("https://shop.localhost/hostname")
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if id := machines(t, s, "shop")[0].ID; err != nil || res.StatusCode != http.StatusOK || strings.TrimSpace(string(b)) != "hostname "+id {
			t.Errorf("%s: %s %q, %v; want the name of machine %s", when, res.Status, b, err, id)
		}
	}
	get("at first")
	m := machines(t, s, "shop")[0]
	eventually(t, "the http check passes", func() bool {
		m = machines(t, s, "shop")[0]
		return len(m.Checks) == 1 && m.Checks[0].Status == "passing" && strings.HasPrefix(m.Checks[0].Output, "200")
	})
	r, err := s.API.Exec(ctx, "shop", m.ID, api.Exec{Command: []string{"testserver", "await", "/etc/shop/key", "7"}, Timeout: 10}, io.Discard, io.Discard)
	if err != nil || r.ExitCode != 7 {
		t.Errorf("the file is not in the guest: exit code %d, %v", r.ExitCode, err)
	}
	s.Kill()
	res, err := client.Get("https://shop.localhost/hostname")
	if err != nil {
		t.Errorf("while the server is dead: %v", err)
	} else {
		res.Body.Close()
	}
	if err := s.Run(ctx); err != nil {
		t.Fatal(err)
	}
	get("after the server came back")
	sound(t, s)
}
