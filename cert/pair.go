package cert

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
)

const (
	maxPEM   = 64 << 10 // of a chain, and of a key
	maxChain = 10       // certificates
	minRSA   = 2048
	// soon is the time before its end at which a certificate that nobody renews is an alarm.
	soon = 14 * 24 * time.Hour
)

// Pair is a certificate chain and the key of its first certificate.
type Pair struct {
	Chain []byte // PEM, leaf first
	Key   []byte // PEM
	Leaf  *x509.Certificate
}

// Parse reads what an operator brings: a chain of certificates, leaf first, and the leaf's key, both PEM.
func Parse(chain, key []byte) (*Pair, error) {
	if len(chain) > maxPEM || len(key) > maxPEM {
		return nil, volant.Invalidf("certificate and key have %d and %d bytes: at most %d each are taken", len(chain), len(key), maxPEM)
	}
	certs, err := parseChain(chain)
	if err != nil {
		return nil, err
	}
	if err := checkKeyForm(key); err != nil {
		return nil, err
	}
	if _, err := tls.X509KeyPair(chain, key); err != nil {
		return nil, volant.Invalidf("certificate and key do not fit together: %v", err).
			WithRemedy("give the key that the certificate was requested with, as PEM")
	}
	leaf := certs[0]
	if k, ok := leaf.PublicKey.(*rsa.PublicKey); ok && k.N.BitLen() < minRSA {
		return nil, volant.Invalidf("the RSA key has %d bits: use at least %d", k.N.BitLen(), minRSA)
	}
	if leaf.IsCA {
		return nil, volant.Invalidf("the first certificate is an authority's (%s)", clip(leaf.Subject.String())).
			WithRemedy("put the host's own certificate first, then the intermediate ones")
	}
	if len(leaf.DNSNames) == 0 {
		return nil, volant.Invalidf("the certificate names no host (it has no subject alternative name)").
			WithRemedy("request one with the host name as a DNS name")
	}
	return &Pair{Chain: pick(chain, "CERTIFICATE"), Key: pick(key, "PRIVATE KEY"), Leaf: leaf}, nil
}

// pick returns the PEM blocks of a kind alone: no key is shown with a chain because it stood beside it.
func pick(b []byte, kind string) []byte {
	var out []byte
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			return out
		}
		if strings.HasSuffix(block.Type, kind) {
			out = append(out, pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes})...)
		}
	}
}

func parseChain(b []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for rest := b; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue // parameters, or a key which stands beside it
		}
		if len(certs) == maxChain {
			return nil, volant.Invalidf("the chain has more than %d certificates", maxChain)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, volant.Invalidf("certificate %d of the chain cannot be read: %v", len(certs)+1, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, volant.Invalidf("there is no certificate in the chain").
			WithRemedy("give PEM, which begins with -----BEGIN CERTIFICATE-----")
	}
	for i, c := range certs[1:] {
		if !bytes.Equal(certs[i].RawIssuer, c.RawSubject) || certs[i].CheckSignatureFrom(c) != nil {
			return nil, volant.Invalidf("certificate %d of the chain (%s) was not issued by the next one (%s)",
				i+1, clip(certs[i].Subject.String()), clip(c.Subject.String())).
				WithRemedy("put the host's certificate first, then the one that issued it, and so on")
		}
	}
	return certs, nil
}

func checkKeyForm(key []byte) error {
	for rest := key; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil
		}
		if block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "" {
			return volant.Invalidf("the key is encrypted with a passphrase").
				WithRemedy("decrypt it first: openssl pkey -in KEY.pem -out PLAIN.pem")
		}
	}
}

// Covers says whether the certificate is for a host name, or for the pattern "*.name".
func (p *Pair) Covers(hostname string) error {
	if slices.Contains(p.Leaf.DNSNames, hostname) {
		return nil
	}
	if err := p.Leaf.VerifyHostname(hostname); err != nil {
		return volant.Invalidf("the certificate is for %s, not for %s", names(p.Leaf.DNSNames), clip(hostname)).
			WithRemedy("request one that names %s", clip(hostname))
	}
	return nil
}

func names(all []string) string {
	var b bytes.Buffer
	for i, n := range all {
		if i == 5 {
			b.WriteString(", …")
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(clip(n))
	}
	return b.String()
}

// KeyType names the kind of key as the API shows it.
func (p *Pair) KeyType() string {
	switch p.Leaf.PublicKey.(type) {
	case *ecdsa.PublicKey:
		return "ecdsa"
	case *rsa.PublicKey:
		return "rsa"
	}
	return "ed25519"
}

// A Stage is where a certificate is in its life.
type Stage int

// The stages.
const (
	Early   Stage = iota // not valid yet
	Valid                // nothing is to be done
	Due                  // two thirds of its life are over: renew it if that is in one's power
	Ending               // ends within 14 days
	Expired              // clients refuse it
)

// Stage says where the certificate is in its life.
func (p *Pair) Stage(now time.Time) Stage {
	from, to := p.Leaf.NotBefore, p.Leaf.NotAfter
	switch {
	case now.Before(from):
		return Early
	case now.After(to):
		return Expired
	case to.Sub(now) < min(soon, to.Sub(from)/3):
		return Ending
	case now.Sub(from) >= to.Sub(from)/3*2:
		return Due
	}
	return Valid
}
