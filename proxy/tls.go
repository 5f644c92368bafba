package proxy

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"sync"
	"time"
)

// handshakeTime bounds a TLS handshake, the client's hello included.
const handshakeTime = 5 * time.Second

// certs are the certificates of a table, by host name.
type certs struct{ byName map[string]*keyPair }

type keyPair struct {
	chain, key []byte
	cert       *tls.Certificate
}

// with are the certificates of a newer table; what did not change is not read again. One that cannot be read is
// left out, and the one before stays.
func (c *certs) with(all []Cert, log *slog.Logger) *certs {
	next := &certs{byName: make(map[string]*keyPair, len(all))}
	for i := range all {
		name := strings.ToLower(all[i].Hostname)
		old := c.byName[name]
		if old != nil && bytes.Equal(old.chain, all[i].Chain) && bytes.Equal(old.key, all[i].Key) {
			next.byName[name] = old
			continue
		}
		pair, err := tls.X509KeyPair(all[i].Chain, all[i].Key)
		if err != nil {
			log.Error("certificate cannot be read", "host", name, "err", err)
			if old != nil {
				next.byName[name] = old
			}
			continue
		}
		next.byName[name] = &keyPair{chain: all[i].Chain, key: all[i].Key, cert: &pair}
	}
	return next
}

// find is the certificate for a host name, nil if there is none.
func (c *certs) find(host string) *tls.Certificate {
	if p, ok := byHost(c.byName, host); ok {
		return p.cert
	}
	return nil
}

// tlsConfig is the config of ports with the same options. It is kept, since tickets of sessions belong to it.
func (f *fronts) tlsConfig(k tlsKey) *tls.Config {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.configs[k]; c != nil {
		return c
	}
	c := &tls.Config{
		MinVersion: k.min, MaxVersion: k.max, GetCertificate: f.certificate,
		CipherSuites: []uint16{ // of TLS 1.2; those of 1.3 are not to be chosen
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
	}
	if k.alpn != "" {
		c.NextProtos = strings.Split(k.alpn, ",")
	}
	if f.configs == nil {
		f.configs = map[tlsKey]*tls.Config{}
	}
	f.configs[k] = c
	return c
}

// certificate is tls.Config's GetCertificate: it finds the app by the name that the client asks for. Without one
// the client is told that the name is not recognized.
func (f *fronts) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	c, ok := hello.Conn.(*frontConn)
	if !ok {
		return nil, errors.New("proxy: a handshake on a connection of another kind")
	}
	c.sni = hostName(hello.ServerName)
	all := f.p.certs.Load()
	r := f.p.route(c.at).of(c.sni)
	if r == nil || r.port == nil {
		c.refusal = ruleNoName
		return nil, nil
	}
	if cert := all.find(c.sni); cert != nil && c.sni != "" {
		return cert, nil
	}
	for _, h := range r.port.hosts { // a client that names no host, or an address of its own name for it
		if cert := all.find(h); cert != nil && c.sni == "" {
			return cert, nil
		}
	}
	if r.port.selfSigned {
		return f.self.get()
	}
	c.refusal = ruleNoCert
	return nil, nil
}

// handshake makes a client's connection a TLS one.
func (f *fronts) handshake(ctx context.Context, c *frontConn, k tlsKey) (*tls.Conn, error) {
	began := time.Now()
	tc := tls.Server(c, f.tlsConfig(k))
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	err := tc.HandshakeContext(ctx)
	if r := f.p.route(c.at).of(c.sni); r != nil && r.app != nil {
		if err != nil {
			r.app.counts.tls.failed(c.sni)
		} else {
			r.app.counts.tls.done(tc.ConnectionState().Version, time.Since(began))
		}
	}
	if err != nil {
		return nil, err
	}
	return tc, nil
}

// selfSigned is a certificate that says who has none, made when it is first needed.
type selfSigned struct {
	once sync.Once
	cert *tls.Certificate
	err  error
}

func (s *selfSigned) get() (*tls.Certificate, error) {
	s.once.Do(func() { s.cert, s.err = newSelfSigned() })
	return s.cert, s.err
}

func newSelfSigned() (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("self-signed certificate: %w", err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Volant: no certificate for this name"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("self-signed certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
