package control

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/cert"
	"github.com/volant-edge/volant/store"
)

// The sources of a certificate record.
const (
	certCustom = "custom" // the operator brought it
	certNone   = "none"   // the host name alone
)

const (
	statusActive  = "active"
	statusPending = "pending_validation"
)

// maxCertificates bounds the host names of an app. Each certificate is in every proxy's memory.
const maxCertificates = 500

// resolveWithin bounds how long a check waits for the name server.
const resolveWithin = 5 * time.Second

// CertificatePlace is what the key of a host name's certificate is sealed for.
func CertificatePlace(hostname string) string { return "cert/" + hostname }

// certificate finds the host name of the path, which is of the app.
func (s *Server) certificate(c *call) (*volant.App, *volant.Certificate, *catalog.Snapshot, error) {
	a, snap, err := s.app(c)
	if err != nil {
		return nil, nil, nil, err
	}
	name, err := cert.Hostname(c.r.PathValue("hostname"))
	if err != nil {
		return nil, nil, nil, err
	}
	rec, ok := snap.Certificate(name)
	if !ok || rec.Tombstone || rec.Owner != a.App {
		return nil, nil, nil, volant.Errorf(volant.ErrNotFound, "app %s does not serve the host name %s", a.Name, name).
			WithRemedy("see `volant certs list --app %s`", a.Name)
	}
	return a, rec, snap, nil
}

func leafOf(rec *volant.Certificate) *x509.Certificate {
	block, _ := pem.Decode(rec.Chain)
	if block == nil {
		return nil
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil // it was read when it was written; without it the name counts as one without a certificate
	}
	return leaf
}

// certStatus says whether a host name's certificate is good now, and if not why.
func certStatus(rec *volant.Certificate, leaf *x509.Certificate, now time.Time) (status string, problems []api.CertificateValidationError) {
	problem := func(code, message, remediation string) {
		problems = append(problems, api.CertificateValidationError{Code: code, Message: message, Remediation: remediation, Timestamp: now})
	}
	switch {
	case leaf == nil:
		problem("no_certificate", "the host name has no certificate of its own", fmt.Sprintf("bring one: volant certs add %s --cert FILE --key FILE", rec.Hostname))
	case now.After(leaf.NotAfter):
		problem("expired", "the certificate expired at "+leaf.NotAfter.Format(time.RFC3339), "bring a new one; it takes the place of this one at once")
	case now.Before(leaf.NotBefore):
		problem("not_yet_valid", "the certificate is not valid before "+leaf.NotBefore.Format(time.RFC3339), "wait, or look at this server's clock")
	default:
		return statusActive, []api.CertificateValidationError{}
	}
	return statusPending, problems
}

func (s *Server) certificateView(snap *catalog.Snapshot, rec *volant.Certificate) api.Certificate {
	leaf := leafOf(rec)
	v := api.Certificate{
		Hostname: rec.Hostname, Certificates: []api.CertificateEntry{}, DNSRequirements: api.DNSRequirements{A: []string{}, AAAA: []string{}},
	}
	v.Status, v.ValidationErrors = certStatus(rec, leaf, time.Now().UTC())
	v.Configured = v.Status == statusActive
	for _, ip := range addresses(snap, rec.Owner) {
		if addr, err := netip.ParseAddr(ip); err == nil && addr.Is4() {
			v.DNSRequirements.A = append(v.DNSRequirements.A, ip)
		} else {
			v.DNSRequirements.AAAA = append(v.DNSRequirements.AAAA, ip)
		}
	}
	if leaf != nil {
		issuer := cmp.Or(leaf.Issuer.CommonName, strings.Join(leaf.Issuer.Organization, ", "))
		v.Certificates = append(v.Certificates, api.CertificateEntry{
			Source: rec.Source, Status: v.Status, Issuer: leaf.Issuer.String(), CreatedAt: rec.Updated, ExpiresAt: leaf.NotAfter,
			Issued: []api.IssuedCertificate{{Type: (&cert.Pair{Leaf: leaf}).KeyType(), CertificateAuthority: issuer, ExpiresAt: leaf.NotAfter}},
		})
	}
	return v
}

func (s *Server) listCertificates(w http.ResponseWriter, c *call) error {
	a, snap, err := s.app(c)
	if err != nil {
		return err
	}
	limit, err := c.number("limit", 25, 1, 500)
	if err != nil {
		return err
	}
	filter, after := strings.ToLower(c.r.URL.Query().Get("filter")), c.r.URL.Query().Get("cursor")
	recs := slices.Clone(snap.Certificates(a.App))
	recs = slices.DeleteFunc(recs, func(r *volant.Certificate) bool { return !strings.Contains(r.Hostname, filter) })
	slices.SortFunc(recs, func(a, b *volant.Certificate) int { return cmp.Compare(a.Hostname, b.Hostname) })
	out := api.CertificateList{Certificates: []api.CertificateSummary{}, TotalCount: len(recs)}
	from, found := slices.BinarySearchFunc(recs, after, func(r *volant.Certificate, at string) int { return cmp.Compare(r.Hostname, at) })
	if found {
		from++ // the cursor is the last one shown
	}
	recs = recs[from:]
	if len(recs) > limit {
		recs = recs[:limit]
		out.NextCursor = recs[limit-1].Hostname
	}
	for _, r := range recs {
		status, _ := certStatus(r, leafOf(r), time.Now())
		out.Certificates = append(out.Certificates, api.CertificateSummary{
			Hostname: r.Hostname, Status: status, Configured: status == statusActive, HasCustomCertificate: r.Source == certCustom,
			CreatedAt: r.Created, UpdatedAt: r.Updated,
		})
	}
	reply(w, http.StatusOK, out)
	return nil
}

func (s *Server) getCertificate(w http.ResponseWriter, c *call) error {
	_, rec, snap, err := s.certificate(c)
	if err != nil {
		return err
	}
	reply(w, http.StatusOK, s.certificateView(snap, rec))
	return nil
}

// createCertificate takes a host name for the app, without a certificate of its own.
func (s *Server) createCertificate(w http.ResponseWriter, c *call) error {
	a, _, err := s.app(c)
	if err != nil {
		return err
	}
	var in api.CreateCertificate
	if err := c.read(w, &in); err != nil {
		return err
	}
	name, err := cert.Hostname(in.Hostname)
	if err != nil {
		return err
	}
	return s.putCertificate(w, c, a, name, func(*volant.Certificate) error { return nil })
}

func (s *Server) createCustomCertificate(w http.ResponseWriter, c *call) error {
	a, _, err := s.app(c)
	if err != nil {
		return err
	}
	var in api.CreateCustomCertificate
	if err := c.read(w, &in); err != nil {
		return err
	}
	name, err := cert.Hostname(in.Hostname)
	if err != nil {
		return err
	}
	pair, err := usable(name, in.Fullchain, in.PrivateKey, time.Now())
	if err != nil {
		return err
	}
	sealed, err := s.Secrets.Seal(CertificatePlace(name), pair.Key)
	if err != nil {
		return err
	}
	return s.putCertificate(w, c, a, name, func(r *volant.Certificate) error {
		r.Source, r.Chain, r.Sealed = certCustom, pair.Chain, sealed
		return nil
	})
}

// usable reads a certificate and sees that a client would take it for the host name now.
func usable(name, chain, key string, now time.Time) (*cert.Pair, error) {
	pair, err := cert.Parse([]byte(chain), []byte(key))
	if err != nil {
		return nil, err
	}
	if err := pair.Covers(name); err != nil {
		return nil, err
	}
	switch pair.Stage(now) {
	case cert.Expired:
		return nil, volant.Invalidf("the certificate expired at %s", pair.Leaf.NotAfter.Format(time.RFC3339)).WithRemedy("request a new one")
	case cert.Early:
		return nil, volant.Invalidf("the certificate is not valid before %s", pair.Leaf.NotBefore.Format(time.RFC3339)).
			WithRemedy("wait until then, or look at this server's clock")
	default:
	}
	return pair, nil
}

// createACME is what clients of platforms with an ACME account ask for.
func (s *Server) createACME(_ http.ResponseWriter, c *call) error {
	a, _, err := s.app(c)
	if err != nil {
		return err
	}
	return volant.Errorf(volant.ErrUnserved, "certificates by ACME are not served yet").
		WithRemedy("bring one: `volant certs add HOST --cert FILE --key FILE --app %s`", a.Name)
}

// putCertificate takes a host name for the app, or changes the one it has.
func (s *Server) putCertificate(w http.ResponseWriter, c *call, a *volant.App, name string, fill func(*volant.Certificate) error) error {
	if err := s.mayServe(a, name); err != nil {
		return err
	}
	rec := &volant.Certificate{Owner: a.App, Hostname: name, Source: certNone}
	rec.Meta = volant.Meta{Kind: volant.KindCert, Org: a.Org, ID: name}
	if err := fill(rec); err != nil {
		return err
	}
	rev, err := store.Apply(c.ctx(), s.Store, c.who.name, store.Claim(rec))
	if errors.Is(err, volant.ErrExists) {
		_, rev, err = store.Update(c.ctx(), s.Store, c.who.name, rec.Key(), func(r *volant.Certificate) error {
			if r.Owner != a.App {
				return volant.Errorf(volant.ErrExists, "the host name %s is served by another app", name).
					WithRemedy("remove it there first (`volant certs remove %s`), or use another name", name)
			}
			return fill(r)
		})
	}
	if err != nil {
		return err
	}
	if err := s.seen(c, rev); err != nil {
		return err
	}
	snap := s.Catalog.Snapshot()
	if now, ok := snap.Certificate(name); ok {
		rec = now
	}
	s.audit(c, a.Org, a.App, "", "certificate_set", fmt.Sprintf("app %s serves the host name %s (certificate: %s)", a.Name, name, rec.Source))
	reply(w, http.StatusCreated, s.certificateView(snap, rec))
	return nil
}

// mayServe refuses host names of the platform itself, which lead to apps by their names, and too many.
func (s *Server) mayServe(a *volant.App, name string) error {
	if s.Domain != "" && (name == s.Domain || strings.HasSuffix(name, "."+s.Domain)) {
		return volant.Errorf(volant.ErrForbidden, "the host name %s is of the platform's own domain", name).
			WithRemedy("use one of a domain of yours; the app answers to %s.%s by itself", a.Name, s.Domain)
	}
	if n := len(s.Catalog.Snapshot().Certificates(a.App)); n >= maxCertificates {
		return volant.Invalidf("the app serves %d host names: use at most %d", n, maxCertificates).WithRemedy("remove some, or use a name with \"*.\"")
	}
	return nil
}

func (s *Server) deleteCertificate(w http.ResponseWriter, c *call) error {
	a, rec, _, err := s.certificate(c)
	if err != nil {
		return err
	}
	rev, err := store.Apply(c.ctx(), s.Store, c.who.name, store.Edit(rec.Key(), func(r *volant.Certificate) error {
		r.Chain, r.Sealed, r.Tombstone = nil, nil, true // a tombstone keeps no key
		return nil
	}))
	if err != nil {
		return err
	}
	if err := s.seen(c, rev); err != nil {
		return err
	}
	s.audit(c, a.Org, a.App, "", "certificate_removed", fmt.Sprintf("app %s no longer serves the host name %s", a.Name, rec.Hostname))
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// deleteCustomCertificate takes the certificate away and leaves the host name.
func (s *Server) deleteCustomCertificate(w http.ResponseWriter, c *call) error {
	a, rec, _, err := s.certificate(c)
	if err != nil {
		return err
	}
	if rec.Source != certCustom {
		return volant.Errorf(volant.ErrNotFound, "the host name %s has no certificate that was brought", rec.Hostname)
	}
	rec, rev, err := store.Update(c.ctx(), s.Store, c.who.name, rec.Key(), func(r *volant.Certificate) error {
		r.Source, r.Chain, r.Sealed = certNone, nil, nil
		return nil
	})
	if err != nil {
		return err
	}
	if err := s.seen(c, rev); err != nil {
		return err
	}
	s.audit(c, a.Org, a.App, "", "certificate_removed", fmt.Sprintf("the certificate of the host name %s was removed", rec.Hostname))
	v := s.certificateView(s.Catalog.Snapshot(), rec)
	v.Warning = "the host name has no certificate now, so clients that ask for it by TLS are refused"
	reply(w, http.StatusOK, v)
	return nil
}

// checkCertificate looks up where the host name leads.
func (s *Server) checkCertificate(w http.ResponseWriter, c *call) error {
	_, rec, snap, err := s.certificate(c)
	if err != nil {
		return err
	}
	v := s.certificateView(snap, rec)
	v.Validation, v.DNSRecords = &api.CertificateValidation{}, &api.DNSRecords{A: []string{}, AAAA: []string{}, ResolvedAddresses: []string{}}
	problem := func(code, message, remediation string) {
		v.ValidationErrors = append(v.ValidationErrors, api.CertificateValidationError{
			Code: code, Message: message, Remediation: remediation, Timestamp: time.Now().UTC(),
		})
	}
	should := slices.Concat(v.DNSRequirements.A, v.DNSRequirements.AAAA)
	if strings.HasPrefix(rec.Hostname, "*.") {
		problem("dns_wildcard", "where the names below a \"*.\" lead cannot be asked for as one", "look one of them up yourself")
		reply(w, http.StatusOK, v)
		return nil
	}
	ctx, cancel := context.WithTimeout(c.ctx(), resolveWithin)
	defer cancel()
	found, err := s.Resolve(ctx, "ip", rec.Hostname)
	for _, ip := range found {
		ip = ip.Unmap()
		v.DNSRecords.ResolvedAddresses = append(v.DNSRecords.ResolvedAddresses, ip.String())
		if ip.Is4() {
			v.DNSRecords.A = append(v.DNSRecords.A, ip.String())
		} else {
			v.DNSRecords.AAAA = append(v.DNSRecords.AAAA, ip.String())
		}
		if slices.Contains(should, ip.String()) {
			v.Validation.DNSConfigured = true
		}
	}
	switch {
	case len(should) == 0:
		problem("no_address", "the app has no address that the name could lead to", "deploy it, or give it one: volant ips allocate-v4 --shared")
	case err != nil:
		problem("dns_lookup", fmt.Sprintf("the host name was not found: %v", err), "make records for "+strings.Join(should, " and ")+" where the domain's records are kept")
	case !v.Validation.DNSConfigured:
		problem("dns_elsewhere", "the host name leads to "+strings.Join(v.DNSRecords.ResolvedAddresses, ", "), "let it lead to "+strings.Join(should, " and "))
	}
	reply(w, http.StatusOK, v)
	return nil
}
