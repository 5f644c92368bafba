package cert

import (
	"crypto/x509"
	"encoding/pem"
	"regexp"

	volant "github.com/volant-edge/volant"
)

// Trusted is an authority's certificate as a machine that is to trust it sees it.
type Trusted struct {
	Name    string   `json:"name"`
	Node    string   `json:"node"` // ID of the server it belongs to
	Domains []string `json:"domains"`
	PEM     string   `json:"pem"`
}

var authorityName = regexp.MustCompile(`^Volant development CA ([0-9a-f]{8})$`)

// Trustable reads the certificate of a development authority that came over the network. Only one of our own
// form is taken, which is bound to domains: no server may make a client trust it for the whole Internet.
func Trustable(b []byte) (Trusted, error) {
	block, rest := pem.Decode(b)
	if len(b) > maxPEM || block == nil || block.Type != "CERTIFICATE" {
		return Trusted{}, volant.Invalidf("the server's CA is no certificate")
	}
	if more, _ := pem.Decode(rest); more != nil {
		return Trusted{}, volant.Invalidf("the server's CA is more than one certificate")
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return Trusted{}, volant.Invalidf("the server's CA cannot be read: %v", err)
	}
	name := authorityName.FindStringSubmatch(c.Subject.CommonName)
	if name == nil || !c.IsCA || len(c.PermittedDNSDomains) == 0 || !c.PermittedDNSDomainsCritical || !c.MaxPathLenZero {
		return Trusted{}, volant.Invalidf("the server's CA (%s) is not one of Volant's, which are bound to domains", clip(c.Subject.String()))
	}
	for _, d := range c.PermittedDNSDomains {
		if _, err := Hostname(d); err != nil {
			return Trusted{}, volant.Invalidf("the server's CA is bound to %q, which is no domain", clip(d))
		}
	}
	pemBytes := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: block.Bytes})
	return Trusted{Name: c.Subject.CommonName, Node: name[1], Domains: c.PermittedDNSDomains, PEM: string(pemBytes)}, nil
}
