package control_test

import (
	"errors"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/volanttest"
)

func TestAddressesAreGivenAndTaken(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		ctx := t.Context()
		newApp(t, p, "web")
		newApp(t, p, "other")
		give := func(app, kind string) api.IPAssignment {
			t.Helper()
			ip, err := p.API.AssignAddress(ctx, app, api.AssignIP{Type: kind, Region: "global"})
			if err != nil {
				t.Fatal(err)
			}
			return ip
		}
		v4, v6 := give("web", "v4"), give("web", "v6")
		one, two := give("web", "shared_v4"), give("other", "shared_v4")
		if v4.Shared || v6.Shared || !one.Shared || one.IP != two.IP || one.IP == v4.IP {
			t.Errorf("addresses %+v %+v, shared %+v %+v", v4, v6, one, two)
		}
		if again := give("web", "shared_v4"); again.IP != one.IP {
			t.Errorf("the shared address again is %s, want %s", again.IP, one.IP)
		}
		ips, err := p.API.Addresses(ctx, "web")
		if err != nil || len(ips) != 3 || ips[2].IP != v6.IP {
			t.Errorf("it lists %+v, %v; want three, IPv6 last", ips, err)
		}
		if err := p.API.ReleaseAddress(ctx, "other", v4.IP); !errors.Is(err, volant.ErrNotFound) {
			t.Errorf("another app releases it: %v", err)
		}
		for _, ip := range []string{v4.IP, one.IP} {
			if err := p.API.ReleaseAddress(ctx, "web", ip); err != nil {
				t.Error(err)
			}
		}
		if ips, err := p.API.Addresses(ctx, "other"); err != nil || len(ips) != 1 || ips[0].IP != one.IP {
			t.Errorf("the other app has %+v, %v; want the shared one still", ips, err)
		}
		if err := p.API.DestroyApp(ctx, "other", true); err != nil {
			t.Fatal(err)
		}
		if fresh := give("web", "v4"); fresh.IP == one.IP {
			t.Error("the shared address was given to one app alone")
		}
		if back := give("web", "shared_v4"); back.IP != one.IP {
			t.Errorf("the shared address is now %s, want %s still", back.IP, one.IP)
		}
		for _, c := range []struct {
			in   api.AssignIP
			kind error
		}{
			{api.AssignIP{Type: "private_v6"}, volant.ErrUnserved},
			{api.AssignIP{Type: "v5"}, volant.ErrInvalid},
			{api.AssignIP{}, volant.ErrInvalid},
			{api.AssignIP{Type: "v4", Region: "ams"}, volant.ErrInvalid},
			{api.AssignIP{Type: "v4", OrgSlug: "x"}, volant.ErrInvalid},
			{api.AssignIP{Type: "v4", Network: "x"}, volant.ErrInvalid},
		} {
			if _, err := p.API.AssignAddress(ctx, "web", c.in); !errors.Is(err, c.kind) {
				t.Errorf("%+v: %v, want %v", c.in, err, c.kind)
			}
		}
		for range 20 {
			if _, err = p.API.AssignAddress(ctx, "web", api.AssignIP{Type: "v6"}); err != nil {
				break
			}
		}
		if !errors.Is(err, volant.ErrInvalid) {
			t.Errorf("addresses without end: %v", err)
		}
	})
}

func TestManyAppsAskForTheSharedAddressAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		names := []string{"a", "b", "c", "d", "e", "f"}
		for _, n := range names {
			newApp(t, p, n)
		}
		var mu sync.Mutex
		got := map[string]int{}
		for _, n := range names {
			go func() {
				ip, err := p.API.AssignAddress(t.Context(), n, api.AssignIP{Type: "shared_v4"})
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				got[ip.IP]++
			}()
		}
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		for ip, n := range got {
			if ad, ok := p.Node.Catalog().Snapshot().Address(ip); !ok || ad.Owner != "" || ad.Type != volant.AddressSharedV4 {
				t.Errorf("address %s of %d apps is held by %+v", ip, n, ad)
			}
		}
	})
}

func TestTheFirstDeployGivesWhatServicesNeed(t *testing.T) {
	for name, c := range map[string]struct {
		ports  []volant.Port
		domain string
		shared bool
	}{
		"raw TCP":                       {[]volant.Port{{Port: 80}}, "example.net", false},
		"http and tls":                  {[]volant.Port{{Port: 80, Handlers: []string{"http"}}, {Port: 443, Handlers: []string{"tls", "http"}}}, "example.net", true},
		"http beside raw TCP":           {[]volant.Port{{Port: 80, Handlers: []string{"http"}}, {Port: 5432}}, "example.net", false},
		"http where apps have no names": {[]volant.Port{{Port: 80, Handlers: []string{"http"}}}, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, p *volanttest.Platform) {
				p.Node.API().Domain = c.domain
				newApp(t, p, "web")
				r := api.CreateRelease{Image: string(volanttest.Image)}
				r.Config.Services = []volant.Service{{Protocol: "tcp", InternalPort: volanttest.Port, Ports: c.ports}}
				if _, err := p.API.CreateRelease(t.Context(), "web", r); err != nil {
					t.Fatal(err)
				}
				code, got := ask[api.IPList](t, p, http.MethodGet, "/v1/apps/web/ip_assignments", "")
				if code != 200 || len(got.IPs) != 2 || got.IPs[0].Shared != c.shared || got.IPs[1].Shared {
					t.Errorf("%d %+v, want the IPv4 address shared: %v, and an IPv6 address", code, got, c.shared)
				}
				if !c.shared {
					return
				}
				r.Config.Services[0].Ports = append(r.Config.Services[0].Ports, volant.Port{Port: 5432})
				if _, err := p.API.CreateRelease(t.Context(), "web", r); err != nil {
					t.Fatal(err)
				}
				if _, got := ask[api.IPList](t, p, http.MethodGet, "/v1/apps/web/ip_assignments", ""); len(got.IPs) != 3 {
					t.Errorf("with a port of raw TCP it has %+v, want an IPv4 address of its own too", got.IPs)
				}
			})
		})
	}
}
