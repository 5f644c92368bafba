package control

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/store"
)

// The kinds of addresses that an app can be given, beside volant.AddressSharedV4.
const (
	addressV4        = "v4"
	addressV6        = "v6"
	addressPrivateV6 = "private_v6"
)

// maxAddresses bounds the addresses of an app. Each has a socket of the proxy for each port of the app.
const maxAddresses = 16

// anywhere is the region of an address: all of them.
const anywhere = "global"

func addressView(ad *volant.Address) api.IPAssignment {
	return api.IPAssignment{
		IP: ad.IP, Region: anywhere, Service: ad.Service, Shared: ad.Type == volant.AddressSharedV4, CreatedAt: ad.Created,
	}
}

func (s *Server) listAddresses(w http.ResponseWriter, c *call) error {
	a, snap, err := s.app(c)
	if err != nil {
		return err
	}
	out := api.IPList{IPs: []api.IPAssignment{}}
	for _, ad := range snap.Addresses(a.App) {
		if !ad.Tombstone {
			out.IPs = append(out.IPs, addressView(ad))
		}
	}
	slices.SortFunc(out.IPs, func(a, b api.IPAssignment) int { return byAddress(a.IP, b.IP) })
	reply(w, http.StatusOK, out)
	return nil
}

// byAddress sorts IPv4 first.
func byAddress(a, b string) int {
	x, _ := netip.ParseAddr(a) // what does not parse comes first
	y, _ := netip.ParseAddr(b)
	return x.Compare(y)
}

func (s *Server) createAddress(w http.ResponseWriter, c *call) error {
	a, snap, err := s.app(c)
	if err != nil {
		return err
	}
	var in api.AssignIP
	if err := c.read(w, &in); err != nil {
		return err
	}
	if err := checkAddress(a, &in); err != nil {
		return err
	}
	if n := len(snap.Addresses(a.App)); n >= maxAddresses {
		return volant.Invalidf("app %s has %d addresses: use at most %d", a.Name, n, maxAddresses).
			WithRemedy("release one: `volant ips release IP --app %s`", a.Name)
	}
	ad, err := s.giveAddress(c, a, in.Type, in.ServiceName)
	if err != nil {
		return err
	}
	reply(w, http.StatusOK, addressView(ad))
	return nil
}

func checkAddress(a *volant.App, in *api.AssignIP) error {
	switch {
	case in.Type == addressPrivateV6:
		return volant.Errorf(volant.ErrUnserved, "private addresses of apps are not served yet").
			WithRemedy("reach the app at one of its public addresses, or its machines at their private ones")
	case in.Type != addressV4 && in.Type != addressV6 && in.Type != volant.AddressSharedV4:
		return volant.Invalidf("type %q: use v4, shared_v4 or v6", cut(in.Type))
	case in.Region != "" && in.Region != anywhere:
		return volant.Invalidf("region %q: addresses belong to no region", cut(in.Region)).WithRemedy("leave it out")
	case in.OrgSlug != "" && in.OrgSlug != string(a.Org):
		return volant.Invalidf("org_slug %q is not the app's organization, %s", cut(in.OrgSlug), a.Org).WithRemedy("leave it out")
	case in.Network != "":
		return volant.Invalidf("network %q: only private addresses belong to a network", cut(in.Network)).WithRemedy("leave it out")
	case len(in.ServiceName) > 100:
		return volant.Invalidf("service_name has %d bytes: use at most 100", len(in.ServiceName))
	}
	return nil
}

func (s *Server) deleteAddress(w http.ResponseWriter, c *call) error {
	a, snap, err := s.app(c)
	if err != nil {
		return err
	}
	ip, err := netip.ParseAddr(c.r.PathValue("ip"))
	if err != nil {
		return volant.Invalidf("%q is no IP address", cut(c.r.PathValue("ip")))
	}
	ad, ok := addressOf(snap, a.App, func(ad *volant.Address) bool { return ad.IP == ip.String() })
	if !ok {
		return volant.Errorf(volant.ErrNotFound, "app %s does not have the address %s", a.Name, ip).
			WithRemedy("see `volant ips list --app %s`", a.Name)
	}
	rev, err := store.Apply(c.ctx(), s.Store, c.who.name, releasing(a.App, ad.Key()))
	if err != nil {
		return err
	}
	if err := s.seen(c, rev); err != nil {
		return err
	}
	s.audit(c, a.Org, a.App, "", "address_released", fmt.Sprintf("app %s no longer has the address %s (%s)", a.Name, ip, ad.Type))
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// releasing is the change by which an app gives an address back. Another app may have it by now that has it in the
// store: what this server knows can be older.
func releasing(app volant.AppID, key string) store.Change {
	return store.Edit(key, func(ad *volant.Address) error {
		if ad.Owner != app {
			return store.NotFound(key)
		}
		ad.Tombstone = true
		return nil
	})
}

func addressOf(snap *catalog.Snapshot, app volant.AppID, is func(*volant.Address) bool) (*volant.Address, bool) {
	for _, ad := range snap.Addresses(app) {
		if !ad.Tombstone && is(ad) {
			return ad, true
		}
	}
	return nil, false
}

// giveAddress gives the app an address of a kind. A shared one it has already is given again.
func (s *Server) giveAddress(c *call, a *volant.App, kind, service string) (*volant.Address, error) {
	ad := &volant.Address{Owner: a.App, Type: kind, Service: service}
	assign := assignAddress
	if kind == volant.AddressSharedV4 {
		if had, ok := addressOf(s.Catalog.Snapshot(), a.App, func(ad *volant.Address) bool { return ad.Type == kind }); ok {
			return had, nil
		}
		assign = assignShared
	}
	rev, err := assign(c.ctx(), s.Store, c.who.name, a, ad, s.Addresses.Next)
	if err != nil {
		return nil, err
	}
	if err := s.seen(c, rev); err != nil {
		return nil, err
	}
	s.audit(c, a.Org, a.App, "", "address_assigned", fmt.Sprintf("app %s has the address %s (%s)", a.Name, ad.IP, ad.Type))
	return ad, nil
}

type nextAddress = func(kind string, used []string) (string, error)

// assignAddress claims the next free address of ad's type for the app.
func assignAddress(ctx context.Context, s store.Store, actor string, a *volant.App, ad *volant.Address, next nextAddress) (store.Revision, error) {
	return claimFree(ctx, s, actor, ad.Type, next, func(ip string) *volant.Address {
		ad.IP = ip
		ad.Meta = volant.Meta{Kind: volant.KindAddress, Org: a.Org, ID: ip}
		return ad
	})
}

// claimFree claims the next free address of a kind by the record that record returns for it.
func claimFree(ctx context.Context, s store.Store, actor, kind string, next nextAddress, record func(ip string) *volant.Address) (store.Revision, error) {
	for range 16 { // another app may claim the same one first
		all, _, err := store.All[volant.Address](ctx, s, keyPrefix(volant.KindAddress, ""))
		if err != nil {
			return store.Revision{}, err
		}
		var used []string
		for _, ad := range all {
			used = append(used, ad.IP)
		}
		ip, err := next(kind, used)
		if err != nil {
			return store.Revision{}, err
		}
		rev, err := store.Apply(ctx, s, actor, store.Claim(record(ip)))
		if !errors.Is(err, volant.ErrExists) {
			return rev, err
		}
	}
	return store.Revision{}, volant.Errorf(volant.ErrConflict, "other apps took each address that was free").WithRemedy("try again")
}

// assignShared gives the app the platform's shared address, which is claimed for good when the first app
// needs one: its apps' names lead to it.
func assignShared(ctx context.Context, s store.Store, actor string, a *volant.App, ad *volant.Address, next nextAddress) (store.Revision, error) {
	for range 16 { // another app may claim one first
		all, _, err := store.All[volant.Address](ctx, s, keyPrefix(volant.KindAddress, ""))
		if err != nil {
			return store.Revision{}, err
		}
		ip := ""
		for _, held := range all {
			if held.Type == volant.AddressSharedV4 && held.Owner == "" && (ip == "" || byAddress(held.IP, ip) < 0) {
				ip = held.IP
			}
		}
		if ip != "" {
			ad.IP = ip
			ad.Meta = volant.Meta{Kind: volant.KindAddress, Org: a.Org, ID: volant.SharedID(ip, a.App)}
			rev, err := store.Apply(ctx, s, actor, store.Claim(ad))
			if errors.Is(err, volant.ErrExists) { // asked for twice at the same moment
				return store.Revision{}, nil
			}
			return rev, err
		}
		_, err = claimFree(ctx, s, actor, volant.AddressSharedV4, next, func(ip string) *volant.Address {
			hold := &volant.Address{IP: ip, Type: volant.AddressSharedV4}
			hold.Meta = volant.Meta{Kind: volant.KindAddress, ID: ip}
			return hold
		})
		if err != nil {
			return store.Revision{}, err
		}
	}
	return store.Revision{}, volant.Errorf(volant.ErrConflict, "the shared address was not claimed").WithRemedy("try again")
}

// assignAddresses gives an app with services its first addresses, and one of its own when it has a shared one and
// services that need more.
func (s *Server) assignAddresses(c *call, a *volant.App, services []volant.Service) error {
	if len(services) == 0 {
		return nil
	}
	snap := s.Catalog.Snapshot()
	kinds := []string{addressV4, addressV6}
	if s.Domain != "" && shareable(services) { // without a domain no host name leads to the app at first
		kinds[0] = volant.AddressSharedV4
	}
	if len(addresses(snap, a.App)) > 0 {
		_, own := addressOf(snap, a.App, func(ad *volant.Address) bool { return ad.Type == addressV4 })
		_, common := addressOf(snap, a.App, func(ad *volant.Address) bool { return ad.Type == volant.AddressSharedV4 })
		if own || !common || shareable(services) {
			return nil
		}
		kinds = kinds[:1]
	}
	for _, kind := range kinds {
		if _, err := s.giveAddress(c, a, kind, ""); err != nil {
			return err
		}
	}
	return nil
}

// shareable says whether every port tells by itself which host name a client means.
func shareable(services []volant.Service) bool {
	for i := range services {
		for j := range services[i].Ports {
			if p := &services[i].Ports[j]; !p.Has(volant.HandlerTLS) && !p.Has(volant.HandlerHTTP) {
				return false
			}
		}
	}
	return true
}
