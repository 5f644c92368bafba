package cert

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/internal/atomicfile"
)

const (
	authorityLife = 10 * 365 * 24 * time.Hour
	leafLife      = 90 * 24 * time.Hour
	backdate      = time.Hour // for clients whose clock is slow

	// CAFile is the authority's certificate, in its directory.
	CAFile = "ca.crt"
	// CAKeyFile is its key, beside it.
	CAKeyFile = "ca.key"
)

// reserved are the domains of development and private use, which no public authority signs for.
func reserved() []string {
	return []string{"localhost", "test", "internal", "local", "home.arpa", "example"}
}

// Authority is this node's certificate authority for development.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

// Open opens the authority in a directory of its own, or makes it. An authority which may not sign for the
// domain, as after a change of the configuration, is replaced: made says that machines have to trust it anew.
func Open(dir string, node volant.NodeID, domain string, now time.Time) (a *Authority, made bool, err error) {
	a, err = load(dir)
	if err == nil && a.Permits(domain) && now.Before(a.cert.NotAfter) {
		return a, false, nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, false, volant.Errorf(volant.ErrInvalid, "the development CA in %s cannot be read: %v", dir, err).
			WithRemedy("put %s and %s back from a backup, or remove both to get another CA", CAFile, CAKeyFile)
	}
	a, err = newAuthority(node, domain, now)
	if err != nil {
		return nil, false, err
	}
	return a, true, a.save(dir)
}

// load reads the authority's files. ErrNotExist means that there is none: a key without a certificate is of
// a making that was cut short.
func load(dir string) (*Authority, error) {
	pemCert, err := readSmall(filepath.Join(dir, CAFile))
	if err != nil {
		return nil, err
	}
	pemKey, err := readSmall(filepath.Join(dir, CAKeyFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s is missing", CAKeyFile)
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(pemCert)
	keyBlock, _ := pem.Decode(pemKey)
	if block == nil || keyBlock == nil {
		return nil, errors.New("it is not PEM")
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	k, err := x509.ParseECPrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, err
	}
	if !k.PublicKey.Equal(c.PublicKey) {
		return nil, fmt.Errorf("%s does not fit %s", CAKeyFile, CAFile)
	}
	return &Authority{cert: c, key: k, pem: pemCert}, nil
}

func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	return io.ReadAll(io.LimitReader(f, maxPEM))
}

func newAuthority(node volant.NodeID, domain string, now time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("development CA: %w", err)
	}
	domains := reserved()
	if domain != "" && !slices.ContainsFunc(domains, func(d string) bool { return below(domain, d) }) {
		domains = append(domains, domain)
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "Volant development CA " + string(node), Organization: []string{"Volant"}},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(authorityLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		PermittedDNSDomainsCritical: true, PermittedDNSDomains: domains, ExcludedIPRanges: everyAddress(),
	}
	c, b, err := sign(tmpl, tmpl, key, key)
	if err != nil {
		return nil, fmt.Errorf("development CA: %w", err)
	}
	return &Authority{cert: c, key: key, pem: b}, nil
}

func everyAddress() []*net.IPNet {
	return []*net.IPNet{
		{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
		{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
	}
}

func serial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b) // never fails since Go 1.24
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b)
}

func sign(tmpl, parent *x509.Certificate, key, by *ecdsa.PrivateKey) (*x509.Certificate, []byte, error) {
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, by)
	if err != nil {
		return nil, nil, err
	}
	c, err := x509.ParseCertificate(der)
	return c, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), err
}

func (a *Authority) save(dir string) error {
	key, err := encodeKey(a.key)
	if err != nil {
		return err
	}
	// The key first: a certificate on disk has its key there.
	if err := atomicfile.Write(filepath.Join(dir, CAKeyFile), key, 0o600); err != nil {
		return fmt.Errorf("development CA: %w", err)
	}
	if err := atomicfile.Write(filepath.Join(dir, CAFile), a.pem, 0o644); err != nil {
		return fmt.Errorf("development CA: %w", err)
	}
	return nil
}

func encodeKey(k *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(k)
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), err
}

// Files are the authority's certificate and key, PEM, for another server of the cluster.
func (a *Authority) Files() (crt, key []byte, err error) {
	key, err = encodeKey(a.key)
	return a.pem, key, err
}

// Install writes the authority that another server of the cluster gave, in place of one that there may be.
func Install(dir string, crt, key []byte) error {
	block, _ := pem.Decode(crt)
	keyBlock, _ := pem.Decode(key)
	if block == nil || keyBlock == nil {
		return volant.Invalidf("the cluster's development CA is not PEM")
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return volant.Invalidf("the cluster's development CA cannot be read: %v", err)
	}
	k, err := x509.ParseECPrivateKey(keyBlock.Bytes)
	if err != nil || !k.PublicKey.Equal(c.PublicKey) {
		return volant.Invalidf("the key of the cluster's development CA does not fit it")
	}
	return (&Authority{cert: c, key: k, pem: crt}).save(dir)
}

// PEM is the authority's certificate.
func (a *Authority) PEM() []byte { return a.pem }

// Name is what trust stores show of the authority.
func (a *Authority) Name() string { return a.cert.Subject.CommonName }

// Expires is the end of the authority.
func (a *Authority) Expires() time.Time { return a.cert.NotAfter }

// Fingerprint is the SHA-256 of the authority's certificate.
func (a *Authority) Fingerprint() [sha256.Size]byte { return sha256.Sum256(a.cert.Raw) }

// Domains are those that the authority may sign for, with all below them.
func (a *Authority) Domains() []string { return a.cert.PermittedDNSDomains }

// Permits says whether the authority may sign for a host name.
func (a *Authority) Permits(hostname string) bool {
	return slices.ContainsFunc(a.cert.PermittedDNSDomains, func(d string) bool { return below(hostname, d) })
}

// Issue makes a certificate for host names, for 90 days.
func (a *Authority) Issue(hostnames []string, now time.Time) (*Pair, error) {
	for _, n := range hostnames {
		if !a.Permits(n) {
			return nil, volant.Invalidf("the development CA does not sign for %s, only below %s", clip(n), names(a.Domains())).
				WithRemedy("bring a certificate of your own for it")
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("issue a certificate: %w", err)
	}
	end := now.Add(leafLife)
	if a.cert.NotAfter.Before(end) {
		end = a.cert.NotAfter
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: commonName(hostnames)}, DNSNames: hostnames,
		NotBefore: now.Add(-backdate), NotAfter: end, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	c, b, err := sign(tmpl, a.cert, key, a.key)
	if err != nil {
		return nil, fmt.Errorf("issue a certificate: %w", err)
	}
	k, err := encodeKey(key)
	return &Pair{Chain: b, Key: k, Leaf: c}, err
}

// commonName is the first name that fits; X.509 bounds it at 64 bytes.
func commonName(hostnames []string) string {
	if len(hostnames) > 0 && len(hostnames[0]) <= 64 {
		return hostnames[0]
	}
	return ""
}
