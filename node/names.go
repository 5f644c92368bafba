package node

import (
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/cert"
	"github.com/volant-edge/volant/control"
	"github.com/volant-edge/volant/proxy"
	"github.com/volant-edge/volant/secret"
	"github.com/volant-edge/volant/why"
)

// DefaultDomain is the domain below which apps have names: browsers and systemd-resolved lead all names below it to
// the machine itself (RFC 6761 §6.3).
const DefaultDomain = "localhost"

// renewEvery is how often certificates are looked at: the development CA's are renewed long before their end.
const renewEvery = 6 * time.Hour

// names knows which host names apps answer to, and with which certificates.
type names struct {
	domain string
	issued *cert.Issued // signs for names below domain; nil: nobody does
	box    *secret.Box  // opens the keys of certificates that operators gave
	why    why.Log
	log    *slog.Logger
	warned map[string]time.Time // of alarms, by host name
}

// hosts are the names an app answers to: its own below the domain, and those it has records of.
func (n *names) hosts(snap *catalog.Snapshot, a *volant.App) []string {
	out := []string{a.Name + "." + n.domain}
	for _, c := range snap.Certificates(a.App) {
		if !c.Tombstone && !slices.Contains(out, c.Hostname) {
			out = append(out, c.Hostname)
		}
	}
	return out
}

// certs are the certificates of an app: those that operators gave, and the development CA's for names that
// have none and that it may sign for.
func (n *names) certs(snap *catalog.Snapshot, a *volant.App, now time.Time) []proxy.Cert {
	var out []proxy.Cert
	unsigned := map[string]bool{a.Name + "." + n.domain: true}
	for _, c := range snap.Certificates(a.App) {
		if c.Tombstone {
			continue
		}
		if len(c.Chain) == 0 {
			unsigned[c.Hostname] = unsigned[c.Hostname] || n.issued != nil && n.issued.Permits(strings.TrimPrefix(c.Hostname, "*."))
			continue
		}
		key, err := n.box.Open(control.CertificatePlace(c.Hostname), c.Sealed)
		if err != nil {
			n.alarm(a, c.Hostname, now, "certificate_unreadable", "the key of the certificate for "+c.Hostname+" cannot be opened: "+err.Error())
			continue
		}
		if !n.look(a, c, key, now) {
			continue
		}
		out = append(out, proxy.Cert{Hostname: c.Hostname, Chain: c.Chain, Key: key})
		unsigned[c.Hostname] = false
	}
	if n.issued == nil {
		return out
	}
	for _, host := range slices.Sorted(maps.Keys(unsigned)) {
		if !unsigned[host] {
			continue
		}
		pair, err := n.issued.Pair(host, now)
		if err != nil {
			n.alarm(a, host, now, "certificate_not_issued", "the development CA gives no certificate for "+host+": "+err.Error())
			continue
		}
		out = append(out, proxy.Cert{Hostname: host, Chain: pair.Chain, Key: pair.Key})
	}
	return out
}

// look says whether a certificate can be served, and raises an alarm about one that ends soon: nobody renews it.
func (n *names) look(a *volant.App, c *volant.Certificate, key []byte, now time.Time) bool {
	p, err := cert.Parse(c.Chain, key)
	if err != nil {
		n.alarm(a, c.Hostname, now, "certificate_unreadable", "the certificate for "+c.Hostname+" cannot be used: "+err.Error())
		return false
	}
	if st := p.Stage(now); st == cert.Ending || st == cert.Expired || st == cert.Early {
		n.alarm(a, c.Hostname, now, "certificate_expiry", "the certificate for "+c.Hostname+" is valid from "+
			p.Leaf.NotBefore.UTC().Format(time.RFC3339)+" to "+p.Leaf.NotAfter.UTC().Format(time.RFC3339)+
			": give one that is valid (`volant certs add`)")
	}
	return true
}

// alarm tells once a day.
func (n *names) alarm(a *volant.App, host string, now time.Time, rule, text string) {
	if now.Sub(n.warned[host]) < 24*time.Hour {
		return
	}
	if n.warned == nil {
		n.warned = map[string]time.Time{}
	}
	n.warned[host] = now
	n.log.Warn("certificate", "app", a.Name, "host", host, "rule", rule)
	n.why.Add(why.Record{Time: now, Kind: why.Machine, Org: a.Org, App: a.App, Rule: rule, Text: text})
}

// ends says whether a part of the table ends TLS, so that it needs certificates.
func ends(parts []proxy.App) bool {
	for i := range parts {
		for j := range parts[i].Services {
			for _, p := range parts[i].Services[j].Ports {
				if slices.Contains(p.Handlers, volant.HandlerTLS) || slices.Contains(p.Handlers, volant.HandlerPGTLS) {
					return true
				}
			}
		}
	}
	return false
}

// caOf is the certificate of an authority, nil if there is none.
func caOf(i *cert.Issued) []byte {
	if i == nil {
		return nil
	}
	return i.PEM()
}

// openCA opens the development CA of this server.
func (s *server) openCA() (*cert.Issued, error) {
	dir, err := s.dir.Sub("ca")
	if err != nil {
		return nil, err
	}
	ca, made, err := cert.Open(dir, s.dir.Node(), s.cfg.Domain, time.Now())
	if err != nil {
		return nil, err
	}
	if made {
		s.cfg.Log.Info("development CA made", "name", ca.Name(), "domain", s.cfg.Domain)
	}
	issued, err := s.dir.Sub("ca-issued")
	if err != nil {
		return nil, err
	}
	return cert.NewIssued(ca, issued)
}
